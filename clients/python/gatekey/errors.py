"""The errors of this package.

::

    GatekeyError
    ├── AccessDenied            the holder of the key may not do it: what `require` raises; carries the decision
    ├── Misconfigured           a guard cannot work as it was made: what `verify` raises at the start of a service
    └── ApiError                no decision was made, or a call of the administration was not carried out
        ├── InvalidArgument     the request cannot be carried out in any state of the data
        │   └── InvalidPath     no resource can have this path: what `Path` raises
        ├── Unauthenticated     this client has no service token, or none that works
        ├── PermissionDenied    this client's token, or the actor, may not do it (PERMISSION_DENIED)
        ├── NotFound            there is no such thing, or none that this client may see
        ├── AlreadyExists       the id is taken
        ├── Aborted             the etag is not the current one
        ├── FailedPrecondition  the state of the data forbids it
        ├── ResourceExhausted   a limit is reached
        ├── Unavailable         no answer could be had now, although it was tried several times
        ├── DeadlineExceeded    there was no answer in time; what was asked may still be done
        ├── Cancelled           the call was given up, because the client was closed
        ├── SecretWithheld      the key was made, but the answer with its secret got lost on the way
        └── InternalError       anything else

Treat an `ApiError` of a check as a denial. `AccessDenied` is in `gatekey.decisions`, beside its decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import grpc

from gatekey import _status


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """An error in one field of a request."""

    field: str
    """The path of the field: `api_key.grants[0].resource`."""
    reason: str
    """Stable, in UPPER_SNAKE_CASE."""
    description: str
    """A sentence for people."""


class GatekeyError(Exception):
    """The base class of all errors of this package."""


class Misconfigured(GatekeyError):
    """A guard cannot work as it was made, because of its templates, its product, or the client's token."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class ApiError(GatekeyError):
    """No decision was made, or a call of the administration was not carried out."""

    code = grpc.StatusCode.UNKNOWN
    """The status code."""

    def __init__(
        self,
        message: str,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: tuple[FieldViolation, ...] = (),
        code: grpc.StatusCode | None = None,
    ) -> None:
        super().__init__(message, reason)
        self.message = message
        self.reason = reason
        """Stable, in UPPER_SNAKE_CASE; see the API's documentation. Empty for errors of the transport."""
        self.metadata = dict(metadata or {})
        """Names and counts that belong to the reason."""
        self.violations = violations
        """The fields of the request that are at fault, if any."""
        self.code = code or self.code

    def __str__(self) -> str:
        return f"{self.message} ({self.reason or self.code.name})"


class InvalidArgument(ApiError):
    """The request cannot be carried out in any state of the data."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class InvalidPath(InvalidArgument, ValueError):
    """No resource can have this path. No call was made."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message, "RESOURCE_INVALID", violations=(FieldViolation("resource", "RESOURCE_INVALID", message),)
        )


class Unauthenticated(ApiError):
    """This client has no service token, or none that works."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(ApiError):
    """This client's token, or the actor, may not do it. The error is not about the holder of a key."""

    code = grpc.StatusCode.PERMISSION_DENIED


class NotFound(ApiError):
    """There is no such thing, or none that this client may see."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(ApiError):
    """The id is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS


class Aborted(ApiError):
    """The etag is not the current one. Read the resource again."""

    code = grpc.StatusCode.ABORTED


class FailedPrecondition(ApiError):
    """The state of the data forbids it."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class ResourceExhausted(ApiError):
    """A limit is reached."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(ApiError):
    """No server responded, although the call was tried several times."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(ApiError):
    """No response came in time. The call may still be carried out."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(ApiError):
    """The call was cancelled, because the client was closed."""

    code = grpc.StatusCode.CANCELLED


class SecretWithheld(ApiError):
    """The key was made, but the response with its secret got lost. Rotate the key, or delete it.

    This happens if the connection breaks at that moment, and the call is repeated. `metadata` names the key.
    """

    code = grpc.StatusCode.UNKNOWN


class InternalError(ApiError):
    """A fault of the service, of the transport, or of something in between."""


_BY_CODE: Mapping[grpc.StatusCode, type[ApiError]] = {
    each.code: each
    for each in (
        InvalidArgument,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        AlreadyExists,
        Aborted,
        FailedPrecondition,
        ResourceExhausted,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
    )
}
_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def failure(
    code: grpc.StatusCode,
    message: str,
    reason: str = "",
    metadata: Mapping[str, str] | None = None,
    violations: tuple[FieldViolation, ...] = (),
) -> ApiError:
    """Return the error of a status code."""
    return _BY_CODE.get(code, InternalError)(message, reason, metadata, violations, code)


def from_rpc(error: grpc.RpcError) -> ApiError:
    """Return the error that a call ended with, and its details. Unreadable details are left out."""
    # Named tuples, or plain ones from an event loop's channel.
    metadata = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    details = next((value for key, value in metadata if key == _status.KEY), None)
    status = _status.read(details) if isinstance(details, bytes) else _status.NOTHING
    return failure(
        error.code(),
        error.details() or error.code().name,
        status.reason,
        status.metadata,
        tuple(FieldViolation(*violation) for violation in status.violations),
    )


def from_number(code: int, message: str, reason: str, field: str) -> ApiError:
    """Return the error of one question of a batch."""
    violations = (FieldViolation(field, reason, message),) if field else ()
    return failure(_CODES.get(code, grpc.StatusCode.UNKNOWN), message, reason, None, violations)
