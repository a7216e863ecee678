"""What Gatekey keeps, as values. `uid`s are the database's own; nobody outside sees them."""

import enum
import hashlib
import uuid
from collections.abc import Mapping
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


def _etag(*identity: object) -> str:
    """A short text that changes with every version, and that no other thing of the same name has."""
    return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Product:
    """An API that keys open."""

    name: ProductName
    policy: Policy
    spec_version: int
    built_in: bool
    create_time: datetime
    update_time: datetime

    @property
    def etag(self) -> str:
        """Changes with every change of the spec."""
        return _etag("product", self.name.product, self.create_time, self.spec_version)


@dataclass(frozen=True, slots=True)
class Tenant:
    """A customer's container inside a product."""

    uid: int
    name: TenantName
    display_name: str
    create_time: datetime
    suspend_time: datetime | None
    delete_time: datetime | None
    purge_time: datetime | None
    version: int

    @property
    def etag(self) -> str:
        """Changes with every change of the tenant itself."""
        return _etag("tenant", self.uid, self.version)

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
    version: int

    @property
    def etag(self) -> str:
        """Changes with every change of the principal itself."""
        return _etag("principal", self.uid, self.version)

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
    description: str
    labels: Mapping[str, str]
    revoke_reason: str
    version: int
    last_use_time: datetime | None

    @property
    def etag(self) -> str:
        """Changes with every change of the key itself."""
        return _etag("api_key", self.uid, self.version)

    def state(self, now: datetime) -> KeyState:
        """The first that holds of revoked, disabled, expired, active: the order of decisions."""
        if self.revoke_time is not None:
            return KeyState.REVOKED
        if self.disable_time is not None:
            return KeyState.DISABLED
        if self.expire_time is not None and self.expire_time <= now:
            return KeyState.EXPIRED
        return KeyState.ACTIVE


@dataclass(frozen=True, slots=True)
class Deleted:
    """How many things a deletion removed."""

    tenants: int = 0
    members: int = 0
    machine_users: int = 0
    api_keys: int = 0
