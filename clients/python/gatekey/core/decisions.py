"""The decision: may the holder of this secret do this action on this resource, now?"""

import enum
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from gatekey.core.grants import ANY, EVERYTHING, NOTHING, Grant, GrantSet, Path, Permission
from gatekey.core.specs import AccessMode, KeyKind, KeyOffer, KeyOwner, ProductSpec

RULES = 2
"""The version of the rules of `decide`. It changes when a decision changes, or depends on more than before."""


class Reason(enum.Enum):
    """The reason of a decision, in the order in which the rules are tested."""

    ALLOWED = "allowed"
    KEY_UNKNOWN = "there is no such key"
    KEY_REVOKED = "the key was revoked"
    KEY_DISABLED = "the key is disabled"
    KEY_EXPIRED = "the key has expired"
    TENANT_SUSPENDED = "the key's {tenant} is suspended"
    TENANT_DELETED = "the key's {tenant} was deleted"
    TENANT_MISMATCH = "the key belongs to another {tenant}"
    RESOURCE_UNKNOWN = "the product has no such resource"
    ACTION_UNKNOWN = "the resource has no such action"
    KEY_PERMISSION_MISSING = "the key needs the permission `{action}` on `{resource}`"
    OWNER_PERMISSION_MISSING = "the role of the key's owner needs the permission `{action}` on `{resource}`"


class PrincipalKind(enum.StrEnum):
    """The kind of a principal."""

    MEMBER = "MEMBER"
    MACHINE_USER = "MACHINE_USER"


class CompiledSpec:
    """A valid spec, compiled for fast decisions."""

    __slots__ = (
        "_actions",
        "_administration",
        "_grantable",
        "_machine_administration",
        "_modes",
        "_offer",
        "_owners",
        "_publishable",
        "_read_only",
        "_roles",
        "spec",
    )

    def __init__(self, spec: ProductSpec) -> None:
        secret_keys = spec.secret_keys
        if secret_keys is None:
            raise ValueError("the spec was not validated")
        self.spec = spec
        # Keyed by the names of the collections alone: `domains/acme.com/links/abc` is found as (domains, links).
        self._actions: Mapping[Path, frozenset[str]] = {
            tuple(c.pattern.split("/")[::2]): frozenset(c.actions) for c in spec.collections
        }
        self._roles: Mapping[str, GrantSet] = {r.role: GrantSet.of(r.grants) for r in spec.roles}
        self._administration: Mapping[str, GrantSet] = {r.role: GrantSet.of(r.administration) for r in spec.roles}
        machine_users = spec.machine_users
        self._machine_administration = GrantSet.of(machine_users.administration) if machine_users else NOTHING
        self._modes = secret_keys.modes
        self._owners = frozenset(secret_keys.offered_owners)
        self._offer: KeyOffer | None = None
        self._read_only = GrantSet.of([Grant(ANY, spec.read_actions)])
        self._grantable = GrantSet.of(secret_keys.restricted.grantable) if secret_keys.restricted else NOTHING
        self._publishable = GrantSet.of(spec.publishable_keys.grants) if spec.publishable_keys else NOTHING

    @property
    def machine_user_role(self) -> str | None:
        """The role of every machine user; None where the product has none."""
        return self.spec.machine_users.role if self.spec.machine_users else None

    @property
    def grantable(self) -> GrantSet:
        """The grants that a restricted key can be given."""
        return self._grantable

    @property
    def publishable_grants(self) -> GrantSet:
        """The grants of every publishable key."""
        return self._publishable

    @property
    def tenant_noun(self) -> str:
        """The product's word for a tenant."""
        return self.spec.tenant_noun or "tenant"

    def actions_on(self, path: Path) -> frozenset[str] | None:
        """Return the actions that the spec declares for the resource; None where it declares no such resource."""
        return self._actions.get(path[::2])

    def role_grants(self, role: str | None) -> GrantSet:
        """Return the grants of a role; none for a role that the spec no longer has."""
        return self._roles.get(role, NOTHING) if role is not None else NOTHING

    def administration(self, role: str | None) -> GrantSet:
        """Return the permissions to administer of a role; none for a role that the spec no longer has."""
        return self._administration.get(role, NOTHING) if role is not None else NOTHING

    @property
    def machine_administration(self) -> GrantSet:
        """The permissions to administer of machine users."""
        return self._machine_administration

    @property
    def offer(self) -> KeyOffer:
        """The kinds, owners, modes and grants that keys can have."""
        if self._offer is None:
            self._offer = KeyOffer(self.spec)
        return self._offer

    def offers_owner(self, owner: "Owner | None") -> bool:
        """Whether secret keys can belong to the owner; None for the tenant itself."""
        return (KeyOwner.TENANT if owner is None else KeyOwner[owner.kind]) in self._owners

    def is_owner(self, role: str | None) -> bool:
        """Whether the role owns the tenant."""
        return any(known.role == role and known.owner for known in self.spec.roles)

    def key_allows(self, kind: KeyKind, mode: AccessMode | None, grants: GrantSet, path: Path, action: str) -> bool:
        """Whether a key by itself gives the action. A key never has more than the spec now offers."""
        if kind is KeyKind.PUBLISHABLE:
            return self._publishable.allows(path, action)
        if mode not in self._modes:
            return False
        if mode is AccessMode.ALL:
            return True
        if mode is AccessMode.READ_ONLY:
            return self._read_only.allows(path, action)
        return grants.allows(path, action) and self._grantable.allows(path, action)

    def key_grants(self, mode: AccessMode | None, grants: GrantSet) -> GrantSet:
        """Return what a secret key of the mode is given, as grants, to compare keys with one another."""
        if mode is AccessMode.ALL:
            return EVERYTHING
        return self._read_only if mode is AccessMode.READ_ONLY else grants


@dataclass(frozen=True, slots=True)
class Owner:
    """The principal that a key belongs to."""

    kind: PrincipalKind
    id: str
    role: str | None
    """The member's role; None for machine users, whose role is the spec's."""


@dataclass(frozen=True, slots=True)
class KeySnapshot:
    """The data behind one secret: everything that a decision depends on, except the time."""

    compiled: CompiledSpec
    tenant: str
    tenant_suspended: bool
    tenant_deleted: bool
    key_id: str
    kind: KeyKind
    mode: AccessMode | None
    grants: GrantSet
    owner: Owner | None
    """None where the key belongs to the tenant itself."""
    key_revoked: bool
    key_disabled: bool
    expire_time: datetime | None
    """The earlier of the key's and the secret's, with time zone."""
    uid: tuple[int, uuid.UUID] = (0, uuid.UUID(int=0))
    """The database's ids of the tenant and the key. No decision depends on them."""
    principal_uid: int | None = None
    """The database's id of the owner. No decision depends on it."""
    was_used: bool = True
    """Whether a use of the key was recorded before."""
    actor_required: bool = False
    """Whether mutations by this service token must name an actor. No decision depends on it."""

    @property
    def product(self) -> str:
        """The id of the key's product."""
        return self.compiled.spec.product

    @property
    def role(self) -> str | None:
        """The owner's current role; None where there is no owner."""
        if self.owner is None:
            return None
        if self.owner.kind is PrincipalKind.MACHINE_USER:
            return self.compiled.machine_user_role
        return self.owner.role


@dataclass(frozen=True, slots=True)
class Request:
    """A well-formed request for a decision."""

    path: Path
    action: str
    tenant: str | None = None
    """The id of the tenant that the request is about; None for the key's own."""
    product: str | None = None
    """The id of the product that the request is about; None for the key's own."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The reason, and the missing permission where one is missing."""

    reason: Reason
    missing: Permission | None = None

    @property
    def allowed(self) -> bool:
        """Whether the action is allowed."""
        return self.reason is Reason.ALLOWED

    def message(self, tenant_noun: str = "tenant") -> str:
        """Return the reason as a sentence for people."""
        text = self.reason.value
        if "{" not in text:
            return text
        missing = self.missing or Permission("", "")
        return text.format(tenant=tenant_noun, resource=missing.resource, action=missing.action)


ALLOWED = Decision(Reason.ALLOWED)
KEY_UNKNOWN = Decision(Reason.KEY_UNKNOWN)


def decide(snapshot: KeySnapshot | None, request: Request, now: datetime) -> Decision:
    """Decide a request from a snapshot. The first rule that fails gives the reason."""
    if snapshot is None or (request.product is not None and request.product != snapshot.product):
        return KEY_UNKNOWN
    reason = holder_problem(snapshot, now)
    if reason is not None:
        return Decision(reason)
    if request.tenant is not None and request.tenant != snapshot.tenant:
        return Decision(Reason.TENANT_MISMATCH)
    actions = snapshot.compiled.actions_on(request.path)
    if actions is None:
        return Decision(Reason.RESOURCE_UNKNOWN)
    if request.action not in actions:
        return Decision(Reason.ACTION_UNKNOWN)
    return _decide_permission(snapshot, request.path, request.action)


def holder_problem(snapshot: KeySnapshot, now: datetime) -> Reason | None:
    """Return why the secret allows nothing at all; None where it may allow something."""
    if snapshot.key_revoked:
        return Reason.KEY_REVOKED
    if snapshot.key_disabled:
        return Reason.KEY_DISABLED
    if snapshot.expire_time is not None and snapshot.expire_time <= now:
        return Reason.KEY_EXPIRED
    if snapshot.tenant_suspended:
        return Reason.TENANT_SUSPENDED
    if snapshot.tenant_deleted:
        return Reason.TENANT_DELETED
    return None


def _decide_permission(snapshot: KeySnapshot, path: Path, action: str) -> Decision:
    compiled, kind = snapshot.compiled, snapshot.kind
    # A key never has more than the spec now offers.
    offered = kind is KeyKind.PUBLISHABLE or compiled.offers_owner(snapshot.owner)
    if not offered or not compiled.key_allows(kind, snapshot.mode, snapshot.grants, path, action):
        return Decision(Reason.KEY_PERMISSION_MISSING, Permission("/".join(path), action))
    # A key of the tenant itself is not limited by a role.
    if snapshot.owner is not None and not compiled.role_grants(snapshot.role).allows(path, action):
        return Decision(Reason.OWNER_PERMISSION_MISSING, Permission("/".join(path), action))
    return ALLOWED
