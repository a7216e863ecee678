"""Page sizes and page tokens.

A token holds the cursor after a page and a fingerprint of the query it belongs to. It is no secret
and no permission: whoever makes one up can only start elsewhere in a list that they may read anyway.
"""

import base64
import hashlib
import uuid

from google.protobuf.message import Message

from gatekey_server.domain.errors import InvalidRequest

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

_FINGERPRINT_BYTES = 12
_PAGE_FIELDS = ("page_size", "page_token")


def read_size(page_size: int) -> int:
    """The page size to use. Raises `InvalidRequest` (`PAGE_SIZE_NEGATIVE`)."""
    if page_size < 0:
        raise InvalidRequest.at("page_size", "PAGE_SIZE_NEGATIVE", "cannot be negative")
    return min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def write_token(request: Message, cursor: str | None) -> str:
    """The token of the page after `cursor`; empty at the end of the list."""
    if cursor is None:
        return ""
    return base64.urlsafe_b64encode(_fingerprint(request) + cursor.encode()).decode().rstrip("=")


def read_token(request: Message, token: str) -> str | None:
    """The cursor in a token; None for the first page.

    Raises `InvalidRequest` (`PAGE_TOKEN_INVALID`), also for a token of another query.
    """
    if not token:
        return None
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        cursor = data[_FINGERPRINT_BYTES:].decode()
    except ValueError:
        raise invalid_token() from None
    if data[:_FINGERPRINT_BYTES] != _fingerprint(request):
        raise invalid_token()
    return cursor


def invalid_token() -> InvalidRequest:
    """The answer to a token that is not one, or not one of this query."""
    return InvalidRequest.at("page_token", "PAGE_TOKEN_INVALID", "is not the `next_page_token` of the same query")


def _fingerprint(request: Message) -> bytes:
    query = type(request)()
    query.CopyFrom(request)
    for field in _PAGE_FIELDS:
        query.ClearField(field)
    text = query.DESCRIPTOR.full_name.encode() + query.SerializeToString(deterministic=True)
    return hashlib.sha256(text).digest()[:_FINGERPRINT_BYTES]


def read_number(request: Message, token: str) -> int:
    """The cursor in a token of a list that goes by numbers; 0 for the first page. Raises as `read_token`."""
    cursor = read_token(request, token)
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise invalid_token()
    return int(cursor)


def read_uuid(request: Message, token: str) -> uuid.UUID:
    """The cursor in a token of a list that goes by UUIDs; the lowest for the first page. Raises as `read_token`."""
    cursor = read_token(request, token)
    if cursor is None:
        return uuid.UUID(int=0)
    try:
        return uuid.UUID(cursor)
    except ValueError:
        raise invalid_token() from None
