"""Parsing messages in bounded time, whatever the bytes are.

Parsing is slowest for many small submessages: at least half a microsecond each, of which 500,000 fit into a
mebibyte. So each method limits the size of its request, and the fields of a large message are counted before it is
parsed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from gatekey.core.errors import InvalidRequest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

MAX_REQUEST_BYTES = 16 << 10
"""The limit of most methods' requests."""

MAX_CHECK_BYTES = 128 << 10
MAX_CHECK_BATCH_BYTES = 1 << 20
MAX_SPEC_BYTES = 512 << 10
MAX_API_KEY_BYTES = 512 << 10
MAX_RESOLVE_BYTES = 128 << 10
MAX_REPORT_BYTES = 256 << 10

_BYTES: Mapping[str, int] = {
    "gatekey.v1.CheckService.Check": MAX_CHECK_BYTES,
    "gatekey.v1.CheckService.BatchCheck": MAX_CHECK_BATCH_BYTES,
    "gatekey.v1.CacheService.Resolve": MAX_RESOLVE_BYTES,
    "gatekey.v1.CacheService.ReportUses": MAX_REPORT_BYTES,
    "gatekey.v1.ProductService.ApplyProduct": MAX_SPEC_BYTES,
    "gatekey.v1.ApiKeyService.CreateApiKey": MAX_API_KEY_BYTES,
    "gatekey.v1.ApiKeyService.UpdateApiKey": MAX_API_KEY_BYTES,
}

MAX_UNSEEN_BYTES = 64 << 10
"""The fields of messages up to this size are not counted."""

MAX_FIELDS = 10_000
"""How many fields a larger message may have, not counting those of submessages without submessages."""

_ANY_TEXT = frozenset(
    f"gatekey.v1.{name}" for name in ("CheckRequest", "BatchCheckRequest", "ResolveRequest", "IdentifySecretRequest")
)
"""Requests with text from a service's own users: keys, which are only hashed, and check requests, which are validated
one by one. None of these texts is looked up or stored."""

_VARINT, _I64, _LENGTH, _START, _END, _I32 = range(6)
_FIXED = {_I64: 8, _START: 0, _END: 0, _I32: 4}
_LAST_SHIFT = 63
_MORE = 0x80
"""The continuation bit of a varint."""


class _TooManyFieldsError(Exception):
    """The message has too many fields. `path` is that of the first one beyond the limit."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


def max_bytes(method: str) -> int:
    """Return the maximum size of a method's request in bytes, by the method's full name."""
    return _BYTES.get(method, MAX_REQUEST_BYTES)


def decode(message_class: type[Message], data: bytes) -> Message:
    """Parse a request of at most `max_bytes`.

    Texts with NUL are refused, because the database cannot store them, except in the requests of `_ANY_TEXT`.
    Raises `InvalidRequest` (`REQUEST_MALFORMED`, `REQUEST_TOO_COMPLEX`, `TEXT_INVALID`).
    """
    descriptor = cast("Descriptor", message_class.DESCRIPTOR)
    if len(data) > MAX_UNSEEN_BYTES:
        try:
            _look_through(descriptor, data)
        except _TooManyFieldsError as error:
            raise _too_complex(error) from None
        except ValueError:
            raise _malformed() from None
    try:
        message = message_class.FromString(data)
    except DecodeError:
        field = _field_with_bad_text(descriptor, data)
        if field is not None:
            raise InvalidRequest.at(field, "TEXT_INVALID", "is not UTF-8") from None
        raise _malformed() from None
    if 0 in data and descriptor.full_name not in _ANY_TEXT:
        _refuse_nul(descriptor, data)
    return message


def _too_complex(error: _TooManyFieldsError) -> InvalidRequest:
    return InvalidRequest.at(error.path, "REQUEST_TOO_COMPLEX", f"the request has more than {MAX_FIELDS} fields")


def _malformed() -> InvalidRequest:
    return InvalidRequest("REQUEST_MALFORMED", "the request is not a message of the method's type")


def _look_through(descriptor: Descriptor, data: bytes) -> None:
    """Count fields, those of messages that hold messages included. Raises `_TooManyFieldsError` and `ValueError`."""
    for _ in _walk(descriptor, data, _HOLDERS):
        pass


def _refuse_nul(descriptor: Descriptor, data: bytes) -> None:
    """Raise as `decode` for the first string field with a NUL, in a parsed message."""
    try:
        for place, start, end in _walk(descriptor, data, _WITH_NUL):
            if place[1].is_text and data.find(0, start, end) >= 0:
                raise InvalidRequest.at(_path(place), "TEXT_INVALID", "holds a NUL")
    except _TooManyFieldsError as error:
        raise _too_complex(error) from None
    except ValueError:
        # An unknown group: its field numbers do not mean what the descriptor says.
        raise _malformed() from None


def _field_with_bad_text(descriptor: Descriptor, data: bytes) -> str | None:
    """Return the path of the first string field that is not UTF-8, in a message that could not be parsed."""
    try:
        for place, start, end in _walk(descriptor, data, _ALL):
            if place[1].is_text:
                try:
                    data[start:end].decode()
                except UnicodeDecodeError:
                    return _path(place)
    except (_TooManyFieldsError, ValueError):
        pass
    return None


@dataclass(frozen=True, slots=True)
class _Known:
    """The properties of a field that a walk needs, cached because descriptors compute them at each access."""

    name: str
    is_text: bool
    is_list: bool
    inner: Descriptor | None
    has_depth: bool
    """Whether its messages have submessages."""


@cache
def _known(descriptor: Descriptor) -> Mapping[int, _Known]:
    """Return the fields of a message, by number."""
    return {
        number: _Known(
            field.name,
            field.type == FieldDescriptor.TYPE_STRING,
            field.is_repeated and not (field.message_type and field.message_type.GetOptions().map_entry),
            field.message_type,
            field.message_type is not None and any(inner.message_type for inner in field.message_type.fields),
        )
        for number, field in descriptor.fields_by_number.items()
    }


_Place = tuple[Any, _Known, int | None]
"""A step of a walk: the step of the message, a field of it, and the index in a list where indices are counted."""


def _path(place: _Place) -> str:
    """Return a path as in `spec.roles[1].grants[0].resource`."""
    above, field, index = place
    name = f"{field.name}[{index}]" if field.is_list and index is not None else field.name
    return f"{_path(above)}.{name}" if above else name


_Open = tuple[Mapping[int, _Known], _Place | None, dict[int, int], int, int]

_HOLDERS, _ALL, _WITH_NUL = range(3)
"""Which messages a walk descends into: those with submessages, all, or those with a zero byte."""


def _walk(descriptor: Descriptor, data: bytes, into: int) -> Iterator[tuple[_Place, int, int]]:
    """Yield the known length-delimited fields, and the ranges of their values.

    A message comes before its own fields. Indices are counted only where the walk descends into more than holders.
    Raises `_TooManyFieldsError` beyond the limit of fields, and `ValueError` where the data are no message.
    """
    budget, index = MAX_FIELDS, None
    # A stack, innermost message last: its fields, its step, the lengths of its lists, and its end.
    open_messages: list[_Open] = [(_known(descriptor), None, {}, 0, len(data))]
    while open_messages:
        fields, above, lists, at, end = open_messages.pop()
        while at < end:
            tag = data[at]
            at += 1
            if tag >= _MORE:
                tag, at = _read_varint(data, at - 1, end)
            field = fields.get(tag >> 3)
            budget -= 1
            if budget < 0:
                name = field.name if field is not None else str(tag >> 3)
                raise _TooManyFieldsError(f"{_path(above)}.{name}" if above else name)
            kind = tag & 7
            if kind == _LENGTH:
                length, at = _read_varint(data, at, end)
                if at + length > end:
                    raise ValueError("a field ends after its message")
                if field is not None:
                    if into != _HOLDERS:
                        index = lists.get(tag, 0)
                        lists[tag] = index + 1
                    place = (above, field, index)
                    yield place, at, at + length
                    if field.inner is not None and (
                        field.has_depth if into == _HOLDERS else into == _ALL or data.find(0, at, at + length) >= 0
                    ):
                        open_messages.append((fields, above, lists, at + length, end))
                        fields, above, lists, end = _known(field.inner), place, {}, at + length
                        continue
                at += length
            elif kind == _VARINT:
                _, at = _read_varint(data, at, end)
            elif kind in _FIXED:
                at += _FIXED[kind]
            else:
                raise ValueError("a field has an unknown wire type")


def _read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < _MORE:
            return value, at
        shift += 7
        if shift > _LAST_SHIFT:
            break
    raise ValueError("a number does not end")
