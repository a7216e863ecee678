"""Questions and decisions as values, and the error that carries a denial."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, TypeVar

from gatekey import errors
from gatekey.v1 import check_service_pb2 as pb
from gatekey.v1 import types_pb2

T = TypeVar("T")

_MAX_CHECKS = 1000
# Half of the server's limit, so that one overlong question does not fail the others.
_MAX_BATCH_BYTES = 512 << 10


class Reason(enum.StrEnum):
    """The reason of a decision."""

    ALLOWED = "ALLOWED"
    KEY_UNKNOWN = "KEY_UNKNOWN"
    KEY_REVOKED = "KEY_REVOKED"
    KEY_DISABLED = "KEY_DISABLED"
    KEY_EXPIRED = "KEY_EXPIRED"
    TENANT_SUSPENDED = "TENANT_SUSPENDED"
    TENANT_DELETED = "TENANT_DELETED"
    TENANT_MISMATCH = "TENANT_MISMATCH"
    RESOURCE_UNKNOWN = "RESOURCE_UNKNOWN"
    ACTION_UNKNOWN = "ACTION_UNKNOWN"
    KEY_PERMISSION_MISSING = "KEY_PERMISSION_MISSING"
    OWNER_PERMISSION_MISSING = "OWNER_PERMISSION_MISSING"
    UNSPECIFIED = "UNSPECIFIED"
    """A reason that this version of the client does not know."""

    @property
    def is_fault(self) -> bool:
        """Whether the asking service is at fault: no key could be allowed the resource or the action of its check."""
        return self in (Reason.RESOURCE_UNKNOWN, Reason.ACTION_UNKNOWN)


class KeyKind(enum.StrEnum):
    """The kind of credential that a key is."""

    SECRET = "SECRET"  # noqa: S105 - the name of a kind
    PUBLISHABLE = "PUBLISHABLE"
    UNSPECIFIED = "UNSPECIFIED"
    """There is no such key, or this version of the client does not know its kind."""


@dataclass(frozen=True, slots=True)
class Permission:
    """An action on a resource."""

    resource: str
    action: str


@dataclass(frozen=True, slots=True)
class Question:
    """May the holder of the key do the action on the resource?"""

    key: str = field(repr=False)
    """The secret as it was presented, without header or scheme."""
    resource: str
    action: str
    tenant: str | None = None
    """The id of the tenant that the request is about; a key of another tenant is denied."""
    product: str | None = None
    """The id of the product that asks; a key of another product is denied like an unknown key."""
    min_revision: int = 0
    """The decision must be right as of this revision or a later one."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision, and whom it is about. True in a condition exactly when the action is allowed."""

    allowed: bool
    reason: Reason
    message: str
    """The reason in a sentence for people."""
    missing_permissions: tuple[Permission, ...] = ()
    """The permissions that were not granted."""
    product: str = ""
    """The id of the key's product. It and all fields below but `revision` are empty for an unknown key."""
    tenant: str = ""
    """The id of the key's tenant."""
    principal: str = ""
    """The resource name of the key's owner. Empty for publishable keys."""
    role: str = ""
    """The owner's current role. Empty for publishable keys."""
    api_key: str = ""
    """The resource name of the key."""
    kind: KeyKind = KeyKind.UNSPECIFIED
    expire_time: datetime | None = None
    """When the presented secret stops working; None if never."""
    revision: int = 0
    """The decision is right as of this revision, and possibly as of later ones."""
    stale: bool = False
    """Whether later changes may be missing from the decision: only with `Cache.stale_s`, without a server."""

    def __bool__(self) -> bool:
        return self.allowed

    def require(self) -> Decision:
        """Return this decision if it allows the action. Raises `AccessDenied`."""
        if not self.allowed:
            raise AccessDenied(self)
        return self


class AccessDenied(errors.GatekeyError):
    """The holder of the key may not do the action on the resource."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision)
        self.decision = decision

    def __str__(self) -> str:
        return f"{self.decision.message} ({self.decision.reason})"

    @property
    def missing_permissions(self) -> tuple[Permission, ...]:
        """The permissions that were not granted, to the key or to the role of its owner."""
        return self.decision.missing_permissions


@dataclass(frozen=True, slots=True)
class CheckFailed:
    """No decision was made about one question of many. Treat it as a denial."""

    error: errors.ApiError
    allowed: Literal[False] = False

    def __bool__(self) -> Literal[False]:
        return False

    def require(self) -> Decision:
        """Raise the error."""
        raise self.error


_REASONS = {
    number: Reason.__members__.get(name.removeprefix("REASON_"), Reason.UNSPECIFIED)
    for name, number in pb.CheckResponse.Reason.items()
}
_KINDS = {
    number: KeyKind.__members__.get(name.removeprefix("KEY_KIND_"), KeyKind.UNSPECIFIED)
    for name, number in types_pb2.KeyKind.items()
}


def write(
    key: str, resource: str, action: str, tenant: str | None, product: str | None, min_revision: int
) -> pb.CheckRequest:
    """Return a question as a message. Raises `InvalidArgument` for text that cannot be sent."""
    try:
        return pb.CheckRequest(
            key=key, resource=resource, action=action, tenant=tenant, product=product, min_revision=min_revision
        )
    except UnicodeEncodeError:
        # Without the error as its cause, which would reveal the key.
        raise errors.InvalidArgument("the question holds text that is not Unicode", "TEXT_INVALID") from None


def try_to_write(asked: Question) -> pb.CheckRequest | CheckFailed:
    """Return the question as a message, or the error if it cannot be sent."""
    try:
        return write(asked.key, asked.resource, asked.action, asked.tenant, asked.product, asked.min_revision)
    except errors.InvalidArgument as error:
        return CheckFailed(error)


def read(answer: pb.CheckResponse) -> Decision:
    """Return the decision in a message."""
    missing = answer.missing_permissions
    return Decision(
        answer.allowed,
        _REASONS.get(answer.reason, Reason.UNSPECIFIED),
        answer.message,
        tuple(Permission(each.resource, each.action) for each in missing) if missing else (),
        answer.product,
        answer.tenant,
        answer.principal,
        answer.role,
        answer.api_key,
        _KINDS.get(answer.kind, KeyKind.UNSPECIFIED),
        answer.expire_time.ToDatetime(UTC) if answer.HasField("expire_time") else None,
        answer.revision,
    )


def read_results(answer: pb.BatchCheckResponse, count: int) -> list[Decision | CheckFailed]:
    """Return the result of each question. Raises `InternalError` if their number is not the number of questions."""
    if len(answer.results) != count:
        raise errors.InternalError(f"{count} questions were answered with {len(answer.results)} results")
    return [_read_result(result) for result in answer.results]


def _read_result(result: pb.BatchCheckResult) -> Decision | CheckFailed:
    if result.HasField("response"):
        return read(result.response)
    error = result.error
    return CheckFailed(
        errors.from_number(error.code, error.message or "no decision was made", error.reason, error.field)
    )


def batches(items: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield the items in order, in batches that the server accepts. `size_of` returns an item's size in bytes."""
    batch: list[T] = []
    bytes_ = 0
    for item in items:
        size = size_of(item)
        if batch and (len(batch) == _MAX_CHECKS or bytes_ + size > _MAX_BATCH_BYTES):
            yield batch
            batch, bytes_ = [], 0
        batch.append(item)
        bytes_ += size
    if batch:
        yield batch


def merge(
    written: Iterable[pb.CheckRequest | Decision | CheckFailed], results: Iterable[Decision | CheckFailed]
) -> list[Decision | CheckFailed]:
    """Return the results of all questions in order: the server's results, and those that were known before."""
    rest = iter(results)
    return [next(rest) if isinstance(each, pb.CheckRequest) else each for each in written]
