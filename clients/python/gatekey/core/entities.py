"""The stored entities, as values. `uid`s are internal ids of the database, which no response holds."""

import enum
import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from gatekey.core.decisions import CompiledSpec
from gatekey.core.errors import Unreadable
from gatekey.core.grants import Grant
from gatekey.core.names import (
    ApiKeyName,
    KeyOwnerName,
    MachineUserName,
    PrincipalName,
    ProductName,
    TenantName,
)
from gatekey.core.specs import AccessMode, KeyKind, KeyOwner


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
    """Return a short text that differs for every version, and for another entity of the same name."""
    return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Product:
    """An API that keys give access to."""

    name: ProductName
    compiled: CompiledSpec
    spec_version: int
    built_in: bool
    create_time: datetime
    update_time: datetime
    unchanged: bool = False
    """Whether the applied spec was in force already."""

    @property
    def etag(self) -> str:
        """Changes with every change of the spec."""
        return _etag("product", self.name.product, self.create_time, self.spec_version)


@dataclass(frozen=True, slots=True)
class UnreadableProduct:
    """A product whose stored spec cannot be read."""

    name: ProductName
    spec_version: int
    create_time: datetime
    update_time: datetime

    @property
    def etag(self) -> str:
        """The same as if the spec could be read."""
        return _etag("product", self.name.product, self.create_time, self.spec_version)

    def error(self) -> Unreadable:
        """Return the error for requests that need the spec."""
        text = f"the stored spec of `{self.name}` cannot be read; the server's log says why"
        return Unreadable("STORED_DATA_UNREADABLE", text, product=self.name.product)


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
        """The state. Deleted wins over suspended, so a suspended tenant is still suspended once it is undeleted."""
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
        """Whether the principal is a machine user."""
        return isinstance(self.name, MachineUserName)


@dataclass(frozen=True, slots=True)
class SecretInfo:
    """The properties of a secret that are not secret."""

    hint: str
    create_time: datetime
    expire_time: datetime | None


@dataclass(frozen=True, slots=True)
class Creator:
    """The creator of a key, as of then. Texts are empty where there was none, and for keys from before this field."""

    actor: str = ""
    """The resource name of the principal on whose behalf it was created."""
    caller: str = ""
    """The resource name of the service token."""
    caller_display_name: str = ""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A named credential of a principal or of the tenant."""

    uid: uuid.UUID
    name: ApiKeyName
    display_name: str
    kind: KeyKind
    owner: KeyOwnerName | None
    """None for publishable keys."""
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
    creator: Creator = Creator()
    actor_required: bool = False
    """Of a service token: whether changes below a tenant must name an actor."""

    @property
    def etag(self) -> str:
        """Changes with every change of the key itself."""
        return _etag("api_key", self.uid, self.version)

    @property
    def owner_kind(self) -> KeyOwner | None:
        """The kind of its owner; None for publishable keys."""
        return None if self.owner is None else owner_kind(self.owner)

    def state(self, now: datetime) -> KeyState:
        """Return the first that applies of revoked, disabled, expired, active, in the order of decisions."""
        if self.revoke_time is not None:
            return KeyState.REVOKED
        if self.disable_time is not None:
            return KeyState.DISABLED
        if self.expire_time is not None and self.expire_time <= now:
            return KeyState.EXPIRED
        return KeyState.ACTIVE


def owner_kind(owner: KeyOwnerName) -> KeyOwner:
    """Return the kind of owner that a name denotes."""
    if isinstance(owner, TenantName):
        return KeyOwner.TENANT
    return KeyOwner.MACHINE_USER if isinstance(owner, MachineUserName) else KeyOwner.MEMBER


@dataclass(frozen=True, slots=True)
class Identified:
    """The key that a secret belongs or belonged to."""

    name: ApiKeyName
    key: ApiKey | None
    """None where the key was deleted."""
    secret: SecretInfo
    description: Mapping[str, object] = field(default_factory=dict)
    """The audit log's description of a deleted key; empty where it was deleted with its owner or its tenant."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """The counts of what a deletion removed."""

    tenants: int = 0
    members: int = 0
    machine_users: int = 0
    api_keys: int = 0
