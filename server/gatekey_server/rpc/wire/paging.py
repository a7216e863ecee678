"""Page sizes and page tokens.

A token holds the cursor after a page and a fingerprint of its query. It is neither a secret nor a permission: a forged
one can only start elsewhere in a list that the caller may read anyway.
"""

import base64
import hashlib
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from gatekey.core.errors import InvalidRequest
from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
from google.protobuf.message import Message

from gatekey_server.store.pauses import Pauses

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
MAX_PAGE_BYTES = 1 << 20
"""How large a page gets. One item alone may be larger. Clients accept 4 MiB."""

T = TypeVar("T")

_FINGERPRINT_BYTES = 12
_PAGE_FIELDS = ("page_size", "page_token")


class PageWriter(Generic[T]):
    """Writes items into the repeated field of a response, as far as there is room.

    Args:
        items: the repeated field.
        write: returns the message of an item. For large ones it yields to the event loop.
        page_size: as in the request. Raises `InvalidRequest` (`PAGE_SIZE_NEGATIVE`).
    """

    def __init__(
        self,
        items: "RepeatedCompositeFieldContainer[Any]",
        write: Callable[[T], Message] | Callable[[T], Awaitable[Message]],
        page_size: int,
    ) -> None:
        self.size = read_size(page_size)
        self._items = items
        self._write = write
        self._bytes = 0
        self._pauses = Pauses()

    async def take(self, item: T) -> bool:
        """Add an item. Returns False where there is no room for it."""
        written = self._write(item)
        message = written if isinstance(written, Message) else await written
        self._bytes += message.ByteSize()
        if self._items and self._bytes > MAX_PAGE_BYTES:
            return False
        self._items.append(message)
        await self._pauses()
        return True


def read_size(page_size: int) -> int:
    """Return the page size to use. Raises `InvalidRequest` (`PAGE_SIZE_NEGATIVE`)."""
    if page_size < 0:
        raise InvalidRequest.at("page_size", "PAGE_SIZE_NEGATIVE", "cannot be negative")
    return min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def write_token(request: Message, cursor: str | None) -> str:
    """Return the token of the page after `cursor`; empty at the end of the list."""
    if cursor is None:
        return ""
    return base64.urlsafe_b64encode(_fingerprint(request) + cursor.encode()).decode().rstrip("=")


def read_token(request: Message, token: str) -> str | None:
    """Return the cursor in a token; None for the first page.

    Raises `InvalidRequest` (`PAGE_TOKEN_INVALID`), also for a token of another query.
    """
    if not token:
        return None
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        cursor = data[_FINGERPRINT_BYTES:].decode()
    except ValueError:
        raise invalid_token() from None
    # The cursor is looked up in the database, which accepts no text with a NUL.
    if "\0" in cursor or data[:_FINGERPRINT_BYTES] != _fingerprint(request):
        raise invalid_token()
    return cursor


def invalid_token() -> InvalidRequest:
    """Return the error for a malformed token, or one of another query."""
    return InvalidRequest.at("page_token", "PAGE_TOKEN_INVALID", "is not the `next_page_token` of the same query")


def _fingerprint(request: Message) -> bytes:
    query = type(request)()
    query.CopyFrom(request)
    for field in _PAGE_FIELDS:
        query.ClearField(field)
    text = query.DESCRIPTOR.full_name.encode() + query.SerializeToString(deterministic=True)
    return hashlib.sha256(text).digest()[:_FINGERPRINT_BYTES]


def read_number(request: Message, token: str) -> int:
    """Return the cursor in a token of a list ordered by numbers; 0 for the first page. Raises as `read_token`."""
    cursor = read_token(request, token)
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise invalid_token()
    return int(cursor)


def read_uuid(request: Message, token: str) -> uuid.UUID:
    """Return the cursor in a token of a list ordered by UUIDs; 0 for the first page. Raises as `read_token`."""
    cursor = read_token(request, token)
    if cursor is None:
        return uuid.UUID(int=0)
    try:
        return uuid.UUID(cursor)
    except ValueError:
        raise invalid_token() from None
