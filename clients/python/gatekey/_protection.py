"""What the helpers for servers have in common: what a request needs, where its key is, and how it is refused."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import grpc

from gatekey import errors
from gatekey._faults import FaultLog
from gatekey._paths import encode
from gatekey.decisions import Decision, Permission, Question, Reason
from gatekey.errors import InvalidPath

T = TypeVar("T")

_FIELD = re.compile(r"{([A-Za-z_]\w*)}", re.ASCII)
_SEGMENT = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._~!$&'()+,;=:@%-]+")
_ACTION = re.compile(r"[a-z][A-Za-z0-9_.:-]{0,63}")
MISCONFIGURED = "the service is misconfigured; its log tells how"
_log = logging.getLogger("gatekey")


@dataclass(frozen=True)
class Requirement(Generic[T]):
    """What the holder of a key must be allowed to do, for a request to be served.

    `resource` and `tenant` are texts in which `{name}` stands for an id in the request, or functions of the request.
    An id stays one segment, as with `gatekey.Path`. Raises `ValueError` for texts that no request can be asked with.
    """

    resource: str | Callable[[T], str]
    action: str
    tenant: str | Callable[[T], str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.resource, str):
            _check_template(self.resource, "resource")
            if any(_FIELD.search(collection) for collection in self.resource.split("/")[::2]):
                raise ValueError(f"the resource {self.resource!r} takes the name of a collection from the request")
        if isinstance(self.tenant, str):
            _check_template(self.tenant, "tenant")
            if "/" in self.tenant:
                raise ValueError(f"the tenant {self.tenant!r} is no id")
        if not _ACTION.fullmatch(self.action):
            raise ValueError(f"{self.action!r} is no action")

    def __str__(self) -> str:
        resource = self.resource if isinstance(self.resource, str) else "a resource made by a function"
        return f"`{self.action}` on `{resource}`"

    @property
    def fields(self) -> frozenset[str]:
        """The names of the ids that are taken from the request."""
        texts = [text for text in (self.resource, self.tenant) if isinstance(text, str)]
        return frozenset(name for text in texts for name in _FIELD.findall(text))

    @property
    def collection(self) -> str | None:
        """The resource's collection, as specs declare it: `domains/*/links`; None where a function makes it."""
        return "/*/".join(self.resource.split("/")[::2]) if isinstance(self.resource, str) else None


def _check_template(text: str, what: str) -> None:
    for segment in _FIELD.sub("x", text).split("/"):
        if not _SEGMENT.fullmatch(segment):
            raise InvalidPath(f"the {what} {text!r} holds {segment!r}, which is neither an id nor of the form {{name}}")


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
        """The key in the values of the header. Raises `AccessRefused`."""
        if not values:
            raise AccessRefused(401, "KEY_MISSING", f"the header `{self.form}` is required")
        value = values[0].strip(" \t")
        scheme, _, key = value.partition(" ") if self.scheme else ("", "", value)
        key = key.strip(" \t")
        if len(values) > 1 or scheme.lower() != self.scheme.lower() or not key:
            raise AccessRefused(401, "KEY_MALFORMED", f"the header is not of the form `{self.form}`, once")
        return key


BEARER = Credential()
"""`authorization: Bearer <key>`."""


class AccessRefused(Exception):
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
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}
_UNAUTHENTICATED = {Reason.KEY_UNKNOWN, Reason.KEY_REVOKED, Reason.KEY_DISABLED, Reason.KEY_EXPIRED}


def question(
    requirement: Requirement[T],
    request: T,
    id_in: Callable[[str], object],
    key: str,
    product: str | None,
    faults: FaultLog,
) -> Question:
    """The question to ask for a request; `id_in` yields an id in the request by name, and None where there is none.

    Raises `AccessRefused`, and `InvalidPath`.
    """

    def segment(field: re.Match[str]) -> str:
        value = id_in(field[1])
        if value is None:
            faults.report(f"{requirement} takes `{{{field[1]}}}` from the request, which has no such parameter")
            raise AccessRefused(500, "SERVICE_MISCONFIGURED", MISCONFIGURED)
        return encode(str(value))

    def filled(text: str | Callable[[T], str]) -> str:
        return text(request) if callable(text) else _FIELD.sub(segment, text)

    tenant = None if requirement.tenant is None else filled(requirement.tenant)
    return Question(key, filled(requirement.resource), requirement.action, tenant, product)


def ensure_allowed(decision: Decision) -> Decision:
    """The decision, if it allows. Raises `AccessRefused`."""
    if decision.allowed:
        return decision
    if decision.reason.is_fault:
        # The client has told the log.
        raise AccessRefused(500, decision.reason.value, MISCONFIGURED)
    status = 401 if decision.reason in _UNAUTHENTICATED else 403
    raise AccessRefused(status, decision.reason.value, decision.message, decision.missing_permissions)


def refusal_for(error: errors.ApiError) -> AccessRefused:
    """How to refuse where there was no decision."""
    if isinstance(error, errors.InvalidArgument):
        return AccessRefused(400, error.reason, error.message)
    # What is wrong between this service and Gatekey is not the client's concern, but that of whoever reads the log.
    _log.warning("a key could not be checked: %s", error)
    if isinstance(error, errors.ResourceExhausted):
        return AccessRefused(429, "TOO_MANY_REQUESTS", "too many keys are being checked; try again later")
    return AccessRefused(503, "UNDECIDED", "the key cannot be checked now; try again later")
