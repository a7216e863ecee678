"""Enums, times and grants: protobuf on the one side, domain values on the other."""

import enum
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Generic, Protocol, TypeVar

from gatekey.v1 import (
    api_key_service_pb2,
    check_service_pb2,
    product_spec_pb2,
    tenant_service_pb2,
    types_pb2,
)
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from gatekey_server.domain.decisions import Reason
from gatekey_server.domain.entities import Deleted, KeyState, TenantState
from gatekey_server.domain.errors import InvalidRequest
from gatekey_server.domain.grants import Grant
from gatekey_server.domain.specs import AccessMode, KeyKind, Lifetime, RestrictedScope

E = TypeVar("E", bound=enum.Enum)
V = TypeVar("V", bound=int)
V_co = TypeVar("V_co", bound=int, covariant=True)


class Wrapper(Protocol[V_co]):
    """What generated code offers for a protobuf enum."""

    def Value(self, name: str) -> V_co: ...  # noqa: N802 - protobuf's name


class EnumMapping(Generic[E, V]):
    """A domain enum and protobuf's: the names are the same but for the prefix."""

    def __init__(self, values: type[E], wrapper: Wrapper[V], prefix: str) -> None:
        self._numbers: dict[E | None, V] = {value: wrapper.Value(f"{prefix}{value.name}") for value in values}
        self._values = {number: value for value, number in self._numbers.items()}
        self._numbers[None] = wrapper.Value(f"{prefix}UNSPECIFIED")

    def read(self, number: V, field: str) -> E | None:
        """None for the unspecified value. Raises `InvalidRequest` (`ENUM_UNKNOWN`)."""
        if number == 0:
            return None
        if number not in self._values:
            raise InvalidRequest.at(field, "ENUM_UNKNOWN", f"{number} is not a value of this enum")
        return self._values[number]

    def write(self, value: E | None) -> V:
        """The unspecified value for None."""
        return self._numbers[value]


KEY_KIND = EnumMapping(KeyKind, types_pb2.KeyKind, "KEY_KIND_")
ACCESS_MODE = EnumMapping(AccessMode, types_pb2.AccessMode, "ACCESS_MODE_")
REASON = EnumMapping(Reason, check_service_pb2.CheckResponse.Reason, "REASON_")
SCOPE = EnumMapping(RestrictedScope, product_spec_pb2.RestrictedPolicy.Scope, "SCOPE_")
LIFETIME = EnumMapping(Lifetime, product_spec_pb2.MachineUserPolicy.Lifetime, "LIFETIME_")
KEY_STATE = EnumMapping(KeyState, api_key_service_pb2.ApiKey.State, "STATE_")
TENANT_STATE = EnumMapping(TenantState, tenant_service_pb2.Tenant.State, "STATE_")


def write_time(time: datetime | None) -> Timestamp | None:
    """A timestamp to set a field to; None leaves it absent."""
    if time is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


def read_time(timestamp: Timestamp, field: str) -> datetime:
    """A time with time zone. Raises `InvalidRequest` (`TIME_INVALID`)."""
    try:
        return timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest.at(field, "TIME_INVALID", "not a time between the years 1 and 9999") from None


def write_duration(duration: timedelta) -> Duration:
    """A duration to set a field to."""
    message = Duration()
    message.FromTimedelta(duration)
    return message


def read_duration(duration: Duration, field: str) -> timedelta:
    """A span of time. Raises `InvalidRequest` (`DURATION_INVALID`)."""
    try:
        return duration.ToTimedelta()
    except (ValueError, OverflowError):
        raise InvalidRequest.at(field, "DURATION_INVALID", "not a duration of at most 10000 years") from None


def read_grants(grants: Iterable[types_pb2.Grant]) -> tuple[Grant, ...]:
    """Grants, of whatever form."""
    return tuple(Grant(grant.resource, tuple(grant.actions)) for grant in grants)


def write_grants(grants: Iterable[Grant]) -> list[types_pb2.Grant]:
    """Grants to set a field to."""
    return [types_pb2.Grant(resource=grant.resource, actions=grant.actions) for grant in grants]


def write_deleted(deleted: Deleted) -> types_pb2.DeletionCounts:
    """Counts of what a deletion removed."""
    return types_pb2.DeletionCounts(
        tenants=deleted.tenants,
        members=deleted.members,
        machine_users=deleted.machine_users,
        api_keys=deleted.api_keys,
    )


def read_mask(mask: FieldMask, changeable: Sequence[str], at: str) -> frozenset[str]:
    """The fields to change, `*` for all of `changeable`. Raises `InvalidRequest` (`UPDATE_MASK_*`)."""
    if not mask.paths:
        raise InvalidRequest.at("update_mask", "UPDATE_MASK_REQUIRED", "the fields to change are required")
    if list(mask.paths) == ["*"]:
        return frozenset(changeable)
    for path in mask.paths:
        if path not in changeable:
            raise InvalidRequest.at(
                "update_mask",
                "UPDATE_MASK_INVALID",
                f"`{path[:64]}` of {at} cannot be changed; these can: {', '.join(changeable)}",
            )
    return frozenset(mask.paths)
