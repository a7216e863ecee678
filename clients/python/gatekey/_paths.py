"""Resource paths that are made of ids: one id stays one segment."""

from __future__ import annotations

import re
from typing import Self
from urllib.parse import quote

from gatekey.errors import InvalidPath

# Beside letters, digits and `-._~`: RFC 3986's pchar without `*`, which is a wildcard, and `%`, which escapes.
_PLAIN = "!$&'()+,;=:@"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NO_IDS = frozenset({"", ".", "..", "*"})


class Path(str):
    """A resource, by collection and id in turns: `Path("shipments", shipment_id)`.

    Each id is one segment, whatever it holds: what cannot stand in a segment is percent-encoded, `%` and `/` included,
    so that different ids are different segments. Raises `InvalidPath` for an id that is empty, `.`, `..` or `*`, holds
    a control character or is not Unicode, and where a collection is without an id.
    """

    __slots__ = ()

    def __new__(cls, *segments: str) -> Self:
        if not segments or len(segments) % 2:
            raise InvalidPath("a path has collections and ids in turns, and the last one is an id")
        return super().__new__(cls, "/".join(map(encode, segments)))

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        # A copy is a string: it is not made of ids once more.
        return str, (str(self),)


def encode(id_: str) -> str:
    """An id as a segment of a path. Raises `InvalidPath`."""
    if not isinstance(id_, str):
        raise TypeError(f"an id is a string, not {type(id_).__name__}")
    if id_ in _NO_IDS or _CONTROL.search(id_):
        raise InvalidPath("an id is empty, `.`, `..` or `*`, or holds a control character")
    try:
        return quote(id_, safe=_PLAIN)
    except UnicodeEncodeError:
        raise InvalidPath("an id is not Unicode") from None
