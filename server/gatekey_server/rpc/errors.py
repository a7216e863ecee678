"""Errors on the wire: one table from the errors of `gatekey.core` to status codes."""

from collections.abc import Mapping

import grpc
from gatekey.core import errors
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

ERROR_DOMAIN = "gatekey"
"""`google.rpc.ErrorInfo.domain` of every error of this service."""

DETAILS_KEY = "grpc-status-details-bin"

_CODES: Mapping[type[errors.DomainError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Unreadable: grpc.StatusCode.INTERNAL,
}

# Details travel in a header, in base 64. A client may reject a response whose headers exceed 8 KiB.
_MAX_DETAILS_BYTES = 4000
_MAX_MESSAGE_CHARS = 1000
# The overhead of the details and of each violation: types, tags, lengths.
_HEAD_BYTES = 256
_VIOLATION_HEAD_BYTES = 4


def status_code(error: errors.DomainError) -> grpc.StatusCode:
    """Return the status code of an error."""
    return _CODES[type(error)]


def details(error: errors.DomainError) -> bytes:
    """Return the `google.rpc.Status` of an error: `ErrorInfo`, `BadRequest` for violations, and `RetryInfo`."""
    status = status_pb2.Status(code=status_code(error).value[0], message=message(error))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata)
    bad_request = _bad_request(error, _MAX_DETAILS_BYTES - _HEAD_BYTES - status.ByteSize() - info.ByteSize())
    unlisted = len(error.violations) - len(bad_request.field_violations)
    if isinstance(error, errors.InvalidRequest):
        unlisted += error.unlisted
    if unlisted:
        info.metadata["unlisted"] = str(unlisted)
    _add(status, info)
    if isinstance(error, errors.Overloaded):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(error.RETRY_AFTER)
        _add(status, retry)
    if error.violations:
        _add(status, bad_request)
    data: bytes = status.SerializeToString()
    return data


def _bad_request(error: errors.DomainError, most_bytes: int) -> error_details_pb2.BadRequest:
    """Return the violations of an error, as many as there is room for."""
    bad_request = error_details_pb2.BadRequest()
    room = most_bytes
    for violation in error.violations:
        written = error_details_pb2.BadRequest.FieldViolation(
            field=violation.field, reason=violation.reason, description=violation.description
        )
        room -= written.ByteSize() + _VIOLATION_HEAD_BYTES
        if room < 0:
            break
        bad_request.field_violations.append(written)
    return bad_request


def message(error: errors.DomainError) -> str:
    """Return the error's text, cut to what fits into a header."""
    text = error.message
    return text if len(text) <= _MAX_MESSAGE_CHARS else f"{text[: _MAX_MESSAGE_CHARS - 1]}…"


def _add(status: status_pb2.Status, detail: Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)
