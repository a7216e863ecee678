"""The rules about keys and their owners: what a product's spec lets a key be, and what may be made of a key.

All functions are pure. They take values, and return the value that applies or raise the error that the API documents.
Commands look up the values, call these rules in order, and store the result.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from gatekey.core import builtin, specs
from gatekey.core.decisions import CompiledSpec, PrincipalKind
from gatekey.core.entities import ApiKey, KeyState, Principal, owner_kind
from gatekey.core.errors import FailedPrecondition, InvalidRequest, PermissionDenied, ResourceExhausted
from gatekey.core.grants import Grant, GrantSet, in_words, without_repetitions
from gatekey.core.names import KeyOwnerName, MachineUserName, MemberName, PrincipalName, TenantName
from gatekey.core.specs import AccessMode, KeyKind, KeyOwner, Lifetime

_OWNERS_IN_WORDS: Mapping[KeyOwner, str] = {
    KeyOwner.MEMBER: "a member",
    KeyOwner.MACHINE_USER: "a machine user",
    KeyOwner.TENANT: "the {tenant} itself",
}


@dataclass(frozen=True, slots=True)
class NewMachineUser:
    """A machine user that is created together with its first key."""

    name: MachineUserName
    display_name: str


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A key to be created. `owner` and `mode` None stand for the product's defaults."""

    parent: TenantName
    display_name: str
    kind: KeyKind = KeyKind.SECRET
    owner: KeyOwnerName | NewMachineUser | None = None
    mode: AccessMode | None = None
    grants: tuple[Grant, ...] = ()
    expire_time: datetime | None = None
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    actor_required: bool = False
    """Only of service tokens."""


@dataclass(frozen=True, slots=True)
class ApiKeyChange:
    """An update of a key. `fields` names the fields to change; all other values are ignored."""

    fields: frozenset[str]
    display_name: str = ""
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    mode: AccessMode | None = None
    grants: tuple[Grant, ...] = ()
    expire_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class KeySettings:
    """The fields of a key that an update can change."""

    display_name: str
    description: str
    labels: Mapping[str, str]
    mode: AccessMode | None
    grants: tuple[Grant, ...]
    expire_time: datetime | None

    @classmethod
    def of(cls, key: ApiKey) -> "KeySettings":
        """Return the settings of a key as it is."""
        return cls(key.display_name, key.description, key.labels, key.mode, key.grants, key.expire_time)


class Limited(enum.StrEnum):
    """The things that a spec can limit for each tenant, by their names in the spec."""

    MEMBERS = "members"
    MACHINE_USERS = "machine_users"
    API_KEYS = "api_keys"


# Creation


def check_form(new: NewApiKey) -> None:
    """Raise where a key cannot be created, whatever the spec and the tenant are.

    Raises `InvalidRequest` (`OWNER_NOT_ALLOWED`, `OWNER_OF_OTHER_TENANT`, `ACTOR_REQUIRED_NOT_ALLOWED`, and as
    `specs.validate_form`).
    """
    if new.owner is not None:
        if new.kind is KeyKind.PUBLISHABLE:
            raise InvalidRequest.at("api_key.owner", "OWNER_NOT_ALLOWED", "a publishable key belongs to its tenant")
        if not isinstance(new.owner, NewMachineUser):
            check_owner_tenant(new.owner, new.parent, "api_key.owner")
    if new.actor_required and new.parent.product != builtin.PRODUCT.product:
        raise InvalidRequest.at(
            "api_key.actor_required", "ACTOR_REQUIRED_NOT_ALLOWED", "only service tokens change anything"
        )
    if new.grants:
        specs.validate_form(new.grants, "api_key.grants")


def check_owner_tenant(owner: KeyOwnerName, parent: TenantName, field: str) -> None:
    """Raise `InvalidRequest` (`OWNER_OF_OTHER_TENANT`) for an owner outside the tenant `parent`."""
    if (owner if isinstance(owner, TenantName) else owner.parent) != parent:
        raise InvalidRequest.at(field, "OWNER_OF_OTHER_TENANT", f"the owner is not of `{parent}`")


def choose_owner(
    compiled: CompiledSpec, new: NewApiKey, actor: PrincipalName | None
) -> KeyOwnerName | NewMachineUser | None:
    """Return the owner of a new key: the one that was named, or the product's default; None for neither."""
    if new.owner is not None or new.kind is KeyKind.PUBLISHABLE:
        return new.owner
    default = compiled.spec.secret_keys.default_owner if compiled.spec.secret_keys else None
    if default is KeyOwner.TENANT:
        return new.parent
    return actor if default is KeyOwner.MEMBER and isinstance(actor, MemberName) else None


def check_owner_offered(compiled: CompiledSpec, kind: KeyKind, owner: KeyOwnerName | NewMachineUser | None) -> None:
    """Raise `InvalidRequest` (`OWNER_REQUIRED`, `OWNER_NOT_OFFERED`) where the spec has no keys of such an owner.

    A new machine user of a product without machine users is refused by `machine_user_lifetime` instead.
    """
    if kind is KeyKind.PUBLISHABLE:
        return
    if isinstance(owner, NewMachineUser) and compiled.spec.machine_users is None:
        return
    offered = compiled.spec.secret_keys.offered_owners if compiled.spec.secret_keys else ()
    words = " or ".join(_OWNERS_IN_WORDS[each].format(tenant=compiled.tenant_noun) for each in offered)
    if owner is None:
        raise InvalidRequest.at("api_key.owner", "OWNER_REQUIRED", f"{words} is required")
    found = KeyOwner.MACHINE_USER if isinstance(owner, NewMachineUser) else owner_kind(owner)
    if found not in offered:
        raise InvalidRequest.at("api_key.owner", "OWNER_NOT_OFFERED", f"a key of this product belongs to {words}")


def has_one_key(compiled: CompiledSpec, owner: Principal) -> bool:
    """Whether a principal can own one key only."""
    return owner.is_machine_user and is_bound_to_keys(compiled)


def second_key(owner: Principal) -> FailedPrecondition:
    """Return the error (`MACHINE_USER_HAS_KEY`) for another key of an owner that `has_one_key`."""
    return FailedPrecondition(
        "MACHINE_USER_HAS_KEY", f"`{owner.name}` has its one key: rotate that, or create another machine user"
    )


def check_own_key(compiled: CompiledSpec, owner: KeyOwnerName, actor: PrincipalName | None) -> None:
    """Raise `PermissionDenied` (`KEY_OF_OTHER_MEMBER`) where only the owner may get the secret of a key.

    Applies to creations and rotations on behalf of an actor, under specs with `own_keys_only`.
    """
    secret_keys = compiled.spec.secret_keys
    own_only = secret_keys is not None and secret_keys.own_keys_only
    if own_only and actor is not None and isinstance(owner, MemberName) and owner != actor:
        raise PermissionDenied(
            "KEY_OF_OTHER_MEMBER",
            f"a key of `{owner}` is made, and gets a new secret, on behalf of this member only",
            metadata={"owner": str(owner)},
        )


# Permissions


def check_kind_offered(compiled: CompiledSpec, kind: KeyKind) -> None:
    """Raise `FailedPrecondition` (`PUBLISHABLE_KEYS_NOT_OFFERED`) for a kind of key that the spec does not have."""
    if kind is KeyKind.PUBLISHABLE and compiled.spec.publishable_keys is None:
        raise FailedPrecondition("PUBLISHABLE_KEYS_NOT_OFFERED", "this product has no publishable keys")


def check_permissions(
    compiled: CompiledSpec, kind: KeyKind, wanted: AccessMode | None, grants: tuple[Grant, ...]
) -> AccessMode | None:
    """Return the mode of a key that is to have these grants; None for publishable keys.

    `wanted` None stands for the product's default mode. Raises `InvalidRequest` (`MODE_*`, `GRANTS_*`, and as
    `specs.validate_grants`) and `FailedPrecondition` (`PUBLISHABLE_KEYS_NOT_OFFERED`).
    """
    if kind is KeyKind.PUBLISHABLE:
        check_kind_offered(compiled, kind)
        if wanted is not None:
            raise InvalidRequest.at("api_key.mode", "MODE_NOT_ALLOWED", "a publishable key has no mode")
        if grants:
            raise InvalidRequest.at("api_key.grants", "GRANTS_NOT_ALLOWED", "those of a publishable key are the spec's")
        return None
    offered = compiled.spec.secret_keys
    if offered is None:
        raise AssertionError("a valid spec has secret keys")
    mode = wanted or offered.default_mode
    if mode is None:
        raise InvalidRequest.at(
            "api_key.mode",
            "MODE_REQUIRED",
            f"this product has no default: one of {', '.join(offered.modes)} is required",
        )
    if mode not in offered.modes:
        raise InvalidRequest.at("api_key.mode", "MODE_NOT_OFFERED", f"one of {', '.join(offered.modes)} is required")
    if mode is not AccessMode.RESTRICTED:
        if grants:
            raise InvalidRequest.at("api_key.grants", "GRANTS_NOT_ALLOWED", f"a key of mode {mode} has none")
        return mode
    if not grants:
        raise InvalidRequest.at("api_key.grants", "GRANTS_REQUIRED", "a restricted key needs at least one")
    specs.validate_grants(compiled.spec, grants, "api_key.grants")
    excess = specs.not_grantable(offered, grants)
    if excess is not None:
        raise InvalidRequest.at(
            "api_key.grants",
            "GRANTS_NOT_OFFERED",
            f"`{excess.action}` on `{excess.resource}` is more than a key of this product can be given,"
            f" which is {in_words(compiled.grantable)}",
            metadata={"resource": excess.resource, "action": excess.action},
        )
    return mode


def check_owner_grants(
    compiled: CompiledSpec, owner: Principal, mode: AccessMode | None, grants: tuple[Grant, ...]
) -> None:
    """Raise `InvalidRequest` (`GRANTS_EXCEED_OWNER`) where a restricted key has grants that its owner's role lacks."""
    if mode is not AccessMode.RESTRICTED:
        return
    role = role_of(compiled, owner)
    allowed = compiled.role_grants(role)
    lacking = allowed.lacks(GrantSet.of(grants))
    if lacking is not None:
        raise InvalidRequest.at(
            "api_key.grants",
            "GRANTS_EXCEED_OWNER",
            f"`{lacking.action}` on `{lacking.resource}` is more than the role `{role}` of the key's owner has,"
            f" which is {in_words(allowed)}",
            metadata={"resource": lacking.resource, "action": lacking.action, "role": role or ""},
        )


def given_by(compiled: CompiledSpec, kind: KeyKind, mode: AccessMode | None, grants: tuple[Grant, ...]) -> GrantSet:
    """Return what a key gives by itself, before its owner's role limits it."""
    if kind is KeyKind.PUBLISHABLE:
        return compiled.publishable_grants
    return compiled.key_grants(mode, GrantSet.of(grants))


def gives_more(compiled: CompiledSpec, before: ApiKey, after: KeySettings) -> bool:
    """Whether a key allows more than before, or for longer."""
    had = compiled.key_grants(before.mode, GrantSet.of(before.grants))
    has = compiled.key_grants(after.mode, GrantSet.of(after.grants))
    return not had.contains(has) or outlives(after.expire_time, before.expire_time)


# Lifetimes


def check_expiry(
    compiled: CompiledSpec, kind: KeyKind, wanted: datetime | None, now: datetime, since: datetime | None = None
) -> datetime | None:
    """Return when a key expires; None for never. `since` is its creation, where that is not now.

    Raises `InvalidRequest` (`EXPIRE_TIME_PAST`, `EXPIRE_TIME_TOO_FAR`).
    """
    keys = compiled.spec.secret_keys if kind is KeyKind.SECRET else compiled.spec.publishable_keys
    longest = keys.max_lifetime if keys else None
    born = since or now
    if wanted is None:
        return born + longest if longest else None
    if wanted <= now:
        raise InvalidRequest.at("api_key.expire_time", "EXPIRE_TIME_PAST", "lies in the past")
    if longest and wanted > born + longest:
        raise InvalidRequest.at(
            "api_key.expire_time", "EXPIRE_TIME_TOO_FAR", f"keys of this product live at most {specs.in_words(longest)}"
        )
    return wanted


def outlives(expire_time: datetime | None, other: datetime | None) -> bool:
    """Whether the first of two expiry times is the later one; None is never."""
    return other is not None and (expire_time is None or expire_time > other)


# Changes


def apply_change(compiled: CompiledSpec, before: ApiKey, change: ApiKeyChange, now: datetime) -> KeySettings:
    """Return the settings of a key after an update. They are validated as on creation.

    A key that is no longer restricted loses its grants. Raises `FailedPrecondition` (`API_KEY_REVOKED`), and as
    `check_permissions` and `check_expiry`.
    """
    if before.revoke_time is not None:
        raise FailedPrecondition("API_KEY_REVOKED", f"`{before.name}` was revoked, for good")
    mode = change.mode if "mode" in change.fields else before.mode
    grants = change.grants if "grants" in change.fields else before.grants
    if mode is not AccessMode.RESTRICTED and "grants" not in change.fields:
        grants = ()
    if change.fields & {"mode", "grants"}:
        mode = check_permissions(compiled, before.kind, mode, grants)
        grants = without_repetitions(grants)
    expire_time = before.expire_time
    if "expire_time" in change.fields:
        expire_time = check_expiry(compiled, before.kind, change.expire_time, now, before.create_time)
    return KeySettings(
        display_name=change.display_name if "display_name" in change.fields else before.display_name,
        description=change.description if "description" in change.fields else before.description,
        labels=change.labels if "labels" in change.fields else before.labels,
        mode=mode,
        grants=grants,
        expire_time=expire_time,
    )


def is_revived(before: ApiKey, change: ApiKeyChange, now: datetime) -> bool:
    """Whether an update gives an expired key a new expiry time, so that it counts for the tenant's limit again."""
    return "expire_time" in change.fields and before.expire_time is not None and before.expire_time <= now


def check_rotation(key: ApiKey, now: datetime) -> None:
    """Raise `FailedPrecondition` (`API_KEY_REVOKED`, `API_KEY_EXPIRED`) where a new secret would not work."""
    state = key.state(now)
    if state in (KeyState.REVOKED, KeyState.EXPIRED):
        raise FailedPrecondition(f"API_KEY_{state}", f"`{key.name}` is {state.lower()}: a new secret would not work")


# Owners and tenants


def role_of(compiled: CompiledSpec, principal: Principal) -> str | None:
    """Return the current role of a principal."""
    return compiled.machine_user_role if principal.is_machine_user else principal.role


def check_role(compiled: CompiledSpec, role: str) -> None:
    """Raise `InvalidRequest` (`ROLE_UNKNOWN`) for a role that the spec does not have."""
    roles = [known.role for known in compiled.spec.roles]
    if role not in roles:
        raise InvalidRequest.at("member.role", "ROLE_UNKNOWN", f"one of {', '.join(roles)} is required")


def machine_user_lifetime(compiled: CompiledSpec) -> Lifetime:
    """Return how long machine users live. Raises `FailedPrecondition` (`MACHINE_USERS_NOT_OFFERED`)."""
    offered = compiled.spec.machine_users
    if offered is None or offered.lifetime is None:
        raise FailedPrecondition("MACHINE_USERS_NOT_OFFERED", "this product has no machine users")
    return offered.lifetime


def check_keyless_machine_user(compiled: CompiledSpec) -> None:
    """Raise `FailedPrecondition` where no machine user can be created without a key.

    The reasons are `MACHINE_USERS_NOT_OFFERED` and `MACHINE_USER_NEEDS_KEY`.
    """
    if machine_user_lifetime(compiled) is Lifetime.BOUND_TO_KEYS:
        raise FailedPrecondition(
            "MACHINE_USER_NEEDS_KEY",
            "machine users of this product live as long as their keys: create one with its first key",
        )


def is_bound_to_keys(compiled: CompiledSpec) -> bool:
    """Whether machine users have one key each, and are deleted with it."""
    machine_users = compiled.spec.machine_users
    return machine_users is not None and machine_users.lifetime is Lifetime.BOUND_TO_KEYS


def limited(kind: PrincipalKind) -> Limited:
    """Return which limit applies to a kind of principal."""
    return Limited.MEMBERS if kind is PrincipalKind.MEMBER else Limited.MACHINE_USERS


def limit_of(compiled: CompiledSpec, what: Limited) -> int:
    """Return how many of something a tenant can hold; 0 for no limit."""
    limits = compiled.spec.limits
    return {
        Limited.MEMBERS: limits.members,
        Limited.MACHINE_USERS: limits.machine_users,
        Limited.API_KEYS: limits.api_keys,
    }[what]


def check_limit(compiled: CompiledSpec, what: Limited, count: int) -> None:
    """Raise `ResourceExhausted` (`LIMIT_REACHED`) where a tenant that holds `count` can hold no more."""
    limit = limit_of(compiled, what)
    if limit and count >= limit:
        words = {Limited.API_KEYS: "API keys", Limited.MACHINE_USERS: "machine users"}.get(what, what.value)
        raise ResourceExhausted(
            "LIMIT_REACHED",
            f"the {compiled.tenant_noun} has reached its limit of {words}: {limit}",
            metadata={"limit": str(limit), "of": what.value},
        )
