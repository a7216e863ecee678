"""What Gatekey keeps, as values. `uid`s are the database's own; nobody outside sees them."""

import enum
import uuid
from dataclasses import dataclass
from datetime import datetime

from gatekey_server.domain.decisions import Policy
from gatekey_server.domain.grants import Grant
from gatekey_server.domain.names import ApiKeyName, MachineUserName, PrincipalName, ProductName, TenantName
from gatekey_server.domain.specs import AccessMode, KeyKind


class TenantState(enum.StrEnum):
    """Whether a tenant's keys work."""

    ACTIVE = "ACTIVE"
    SUSPENDED = "SUSPENDED"
    DELETED = "DELETED"


class KeyState(enum.StrEnum):
    """Whether a key works, apart from its tenant and its owner."""

    ACTIVE = "ACTIVE"
    DISABLED = "DISABLED"
    REVOKED = "REVOKED"
    EXPIRED = "EXPIRED"


@dataclass(frozen=True, slots=True)
class Product:
    """An API that keys open."""

    name: ProductName
    policy: Policy
    spec_version: int
    built_in: bool
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class Tenant:
    """A customer's container inside a product."""

    uid: int
    name: TenantName
    display_name: str
    create_time: datetime
    suspend_time: datetime | None
    delete_time: datetime | None

    @property
    def state(self) -> TenantState:
        """Deleted wins over suspended, so that a tenant that is undeleted is suspended as before."""
        if self.delete_time is not None:
            return TenantState.DELETED
        return TenantState.SUSPENDED if self.suspend_time is not None else TenantState.ACTIVE


@dataclass(frozen=True, slots=True)
class Principal:
    """A member or a machine user."""

    uid: int
    name: PrincipalName
    role: str | None
    """A member's role; None for machine users, whose role is the spec's."""
    display_name: str
    create_time: datetime

    @property
    def is_machine_user(self) -> bool:
        """Whether the principal is no person."""
        return isinstance(self.name, MachineUserName)


@dataclass(frozen=True, slots=True)
class SecretInfo:
    """What can be told of a secret without telling it."""

    hint: str
    create_time: datetime
    expire_time: datetime | None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A named credential of a principal or, when publishable, of the tenant."""

    uid: uuid.UUID
    name: ApiKeyName
    display_name: str
    kind: KeyKind
    owner: PrincipalName | None
    mode: AccessMode | None
    grants: tuple[Grant, ...]
    create_time: datetime
    expire_time: datetime | None
    disable_time: datetime | None
    revoke_time: datetime | None
    secrets: tuple[SecretInfo, ...]

    def state(self, now: datetime) -> KeyState:
        """The first that holds of revoked, disabled, expired, active: the order of decisions."""
        if self.revoke_time is not None:
            return KeyState.REVOKED
        if self.disable_time is not None:
            return KeyState.DISABLED
        if self.expire_time is not None and self.expire_time <= now:
            return KeyState.EXPIRED
        return KeyState.ACTIVE
