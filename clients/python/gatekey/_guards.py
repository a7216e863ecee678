"""What the helpers for servers have in common: what a request needs, where its key is, and how it is refused."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from gatekey import errors
from gatekey.decisions import Decision, Permission, Question, Reason

T = TypeVar("T")

_FIELD = re.compile(r"{(\w+)}")
_log = logging.getLogger("gatekey")


@dataclass(frozen=True)
class Need(Generic[T]):
    """What the holder of a key must be allowed to do, for a request to be served.

    `resource` and `tenant` are texts in which `{name}` stands for a part of the request, or functions of the request.
    """

    resource: str | Callable[[T], str]
    action: str
    tenant: str | Callable[[T], str] | None = None


@dataclass(frozen=True, slots=True)
class Credential:
    """Where the holder of a key presents it: what the product's spec says under `credential`."""

    header: str = "authorization"
    """In lower case."""
    scheme: str = "Bearer"
    """Empty: the header's value is the key."""

    @property
    def form(self) -> str:
        """How to present a key, for people."""
        return f"{self.header}: {self.scheme} <key>" if self.scheme else f"{self.header}: <key>"

    def key_in(self, values: Sequence[str]) -> str:
        """The key in the values of the header. Raises `Refusal`."""
        if not values:
            raise Refusal(401, "KEY_MISSING", f"the header `{self.form}` is required")
        value = values[0].strip()
        scheme, _, key = value.partition(" ") if self.scheme else ("", "", value)
        key = key.strip()
        if len(values) > 1 or scheme.lower() != self.scheme.lower() or not key:
            raise Refusal(401, "KEY_MALFORMED", f"the header is not of the form `{self.form}`, once")
        return key


BEARER = Credential()
"""`authorization: Bearer <key>`."""


class Refusal(Exception):
    """A request is not served: why, as a status of HTTP and of gRPC, and for people and programs."""

    def __init__(self, status: int, reason: str, message: str, missing_permissions: Sequence[Permission] = ()) -> None:
        super().__init__(status, reason, message)
        self.status = status
        self.reason = reason
        self.message = message
        self.missing_permissions = missing_permissions

    @property
    def code(self) -> grpc.StatusCode:
        """The status of gRPC."""
        return _CODES[self.status]

    @property
    def body(self) -> Mapping[str, object]:
        """What to tell a client of HTTP."""
        missing = [{"resource": each.resource, "action": each.action} for each in self.missing_permissions]
        return {"reason": self.reason, "message": self.message, "missing_permissions": missing}


_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
_UNAUTHENTICATED = {Reason.KEY_UNKNOWN, Reason.KEY_REVOKED, Reason.KEY_DISABLED, Reason.KEY_EXPIRED}


def question(need: Need[T], request: T, parts: Callable[[str], Any], key: str, product: str | None) -> Question:
    """The question to ask for a request; `parts` yields a part of the request by name. Raises `Refusal`."""

    def filled(text: str | Callable[[T], str]) -> str:
        return text(request) if callable(text) else _FIELD.sub(lambda field: _segment(parts(field[1])), text)

    tenant = None if need.tenant is None else filled(need.tenant)
    return Question(key, filled(need.resource), need.action, tenant, product)


def _segment(value: object) -> str:
    # What a client sends is one id, and does not make the path lead elsewhere.
    text = str(value)
    if not text or "/" in text:
        raise Refusal(400, "RESOURCE_INVALID", "an id in the request is empty, or holds a slash")
    return text


def admitted(decision: Decision) -> Decision:
    """The decision, if it allows. Raises `Refusal`."""
    if decision.allowed:
        return decision
    status = 401 if decision.reason in _UNAUTHENTICATED else 403
    raise Refusal(status, decision.reason.value, decision.message, decision.missing_permissions)


def undecided(error: errors.CallFailed) -> Refusal:
    """How to refuse where there was no decision."""
    if isinstance(error, errors.InvalidArgument):
        return Refusal(400, error.reason, error.message)
    # What is wrong between this service and Gatekey is not the client's concern, but that of whoever reads the log.
    _log.warning("a key could not be checked: %s", error)
    if isinstance(error, errors.ResourceExhausted):
        return Refusal(429, "TOO_MANY_REQUESTS", "too many keys are being checked; try again later")
    return Refusal(503, "UNDECIDED", "the key cannot be checked now; try again later")
