"""Enums, times and grants: protobuf on the one side, values of `gatekey.core` on the other."""

import enum
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Generic, Protocol, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from gatekey.core import times
from gatekey.core.decisions import Reason
from gatekey.core.entities import Deleted, KeyState, TenantState
from gatekey.core.errors import InvalidRequest, Violation
from gatekey.core.grants import MAX_ACTIONS, Grant
from gatekey.core.specs import MAX_GRANTS, AccessMode, KeyKind, KeyOwner, Lifetime, RestrictedScope
from gatekey.v1 import (
    api_key_service_pb2,
    check_service_pb2,
    product_spec_pb2,
    tenant_service_pb2,
    types_pb2,
)

MAX_MASK_PATHS = 64

MAX_DURATION_S = 10_000_000_000
"""Longer than any duration that a field allows, and short enough for every sum with a time."""

_NANOS = 10**9
_MIN_S, _MAX_S = (int(time.timestamp()) for time in (times.MIN_TIME, times.MAX_TIME))

E = TypeVar("E", bound=enum.Enum)
V = TypeVar("V", bound=int)
V_co = TypeVar("V_co", bound=int, covariant=True)


class Wrapper(Protocol[V_co]):
    """What generated code offers for a protobuf enum."""

    def Value(self, name: str) -> V_co: ...  # noqa: N802 - protobuf's name


class EnumMapping(Generic[E, V]):
    """An enum of `gatekey.core` and protobuf's: the names are the same but for the prefix."""

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
KEY_OWNER = EnumMapping(KeyOwner, product_spec_pb2.SecretKeyPolicy.Owner, "OWNER_")
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
    """A time with time zone, in whole microseconds. Raises `InvalidRequest` (`TIME_INVALID`).

    Bounded before it is rounded, which takes it no further than the bounds.
    """
    seconds, nanos = timestamp.seconds, timestamp.nanos
    if not 0 <= nanos < _NANOS or not (_MIN_S, 0) <= (seconds, nanos) <= (_MAX_S, 0):
        raise InvalidRequest.at(
            field, "TIME_INVALID", f"not a time between the years {times.MIN_TIME.year} and {times.MAX_TIME.year}"
        )
    return times.MIN_TIME + timedelta(seconds=seconds - _MIN_S, microseconds=nanos // 1000)


def write_duration(duration: timedelta) -> Duration:
    """A duration to set a field to."""
    message = Duration()
    message.FromTimedelta(duration)
    return message


def read_duration(duration: Duration, field: str) -> timedelta:
    """A span of time, in whole microseconds. Raises `InvalidRequest` (`DURATION_INVALID`).

    Rounded away from 0: what is negative or over a bound, however little, stays so.
    """
    seconds, nanos = duration.seconds, duration.nanos
    if abs(nanos) >= _NANOS or seconds * nanos < 0 or abs(seconds) >= MAX_DURATION_S:
        raise InvalidRequest.at(field, "DURATION_INVALID", f"not a duration of less than {MAX_DURATION_S} s")
    microseconds = -(-nanos // 1000) if nanos > 0 else nanos // 1000
    return timedelta(seconds=seconds, microseconds=microseconds)


def read_grants(grants: Iterable[types_pb2.Grant]) -> tuple[Grant, ...]:
    """Grants, of whatever form."""
    return tuple(Grant(grant.resource, tuple(grant.actions)) for grant in grants)


def read_key_grants(grants: Sequence[types_pb2.Grant], field: str) -> tuple[Grant, ...]:
    """Grants for a key, of whatever form.

    Raises `InvalidRequest` (`GRANTS_INVALID`) where there are more than any key can have.
    """
    if len(grants) > MAX_GRANTS:
        too_many = Violation(field, "TOO_MANY", f"at most {MAX_GRANTS} are allowed")
        raise InvalidRequest.all("GRANTS_INVALID", [too_many])
    for number, grant in enumerate(grants):
        if len(grant.actions) > MAX_ACTIONS:
            too_many = Violation(f"{field}[{number}].actions", "TOO_MANY", f"at most {MAX_ACTIONS} are allowed")
            raise InvalidRequest.all("GRANTS_INVALID", [too_many])
    return read_grants(grants)


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
    if len(mask.paths) > MAX_MASK_PATHS:
        raise InvalidRequest.at("update_mask", "UPDATE_MASK_INVALID", f"more than {MAX_MASK_PATHS} paths")
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
