"""`BatchCheckRequest` and `BatchCheckResponse` as bytes, where their parts are known and need not be read."""

from collections.abc import Sequence
from functools import lru_cache

# Of `checks`, `results` and `response`, which are all field 1 and have a length.
_TAG = 0x0A


def split(data: bytes, most: int) -> Sequence[bytes] | None:
    """The serialized checks of a serialized request; None where it holds anything else, or more of them."""
    checks: list[bytes] = []
    start, end = 0, len(data)
    while start < end:
        if data[start] != _TAG or len(checks) >= most:
            return None
        length, shift, start = 0, 0, start + 1
        while True:
            if start >= end or shift > 28:
                return None
            byte = data[start]
            start += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        if start + length > end:
            return None
        checks.append(data[start : start + length])
        start += length
    return checks


@lru_cache(maxsize=1024)
def head(length: int) -> bytes:
    """What comes before a serialized `CheckResponse` of so many bytes in a serialized `BatchCheckResponse`."""
    response = bytes((_TAG, *_varint(length)))
    return bytes((_TAG, *_varint(len(response) + length))) + response


def _varint(number: int) -> list[int]:
    rest = []
    while number > 0x7F:
        rest.append(number & 0x7F | 0x80)
        number >>= 7
    return [*rest, number]
