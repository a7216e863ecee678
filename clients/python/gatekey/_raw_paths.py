"""The ids in the path of a request of ASGI: as they were sent, and not as what decoding has made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from gatekey.errors import InvalidPath

_HALF_ESCAPED = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def id_in(scope: Mapping[str, Any], name: str) -> str | None:
    """A parameter of the path, which is one segment of it, or a part of one; None where there is no such parameter.

    Raises `InvalidPath` where it is more, or where one segment that was sent has become several by being decoded.
    """
    parameters: Mapping[str, Any] = scope.get("path_params", {})
    if name not in parameters:
        return None
    sent = _segments(scope)
    hidden = sum(segment.count("/") for segment in sent)
    values = [str(value) for value in parameters.values()]
    inside = [value for value in values if "/" in value]
    # Frameworks route by the decoded path. Every slash that was sent escaped has to lie in a parameter that is one
    # segment; else it has parted what belongs together.
    if sum(value.count("/") for value in inside) != hidden or not set(inside) <= set(sent):
        raise InvalidPath("an id in the request's path is not one segment of it")
    return str(parameters[name])


def _segments(scope: Mapping[str, Any]) -> list[str]:
    """The segments of the path as they were sent, each decoded; none where the server does not tell them."""
    raw = scope.get("raw_path")
    if not raw:
        return []
    raw = raw.partition(b"?")[0]
    if _HALF_ESCAPED.search(raw):
        raise InvalidPath("the request's path is not percent-encoded")
    try:
        segments = [unquote_to_bytes(segment).decode() for segment in raw.split(b"/")]
    except UnicodeDecodeError:
        raise InvalidPath("the request's path is not Unicode") from None
    decoded, path = "/".join(segments), scope["path"]
    # A prefix may have been taken off, or put before.
    if not decoded.endswith(path) and not path.endswith(decoded):
        raise InvalidPath("the request's path is not the one that was sent")
    return segments
