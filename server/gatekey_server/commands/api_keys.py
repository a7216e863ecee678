"""The life of API keys."""

import secrets
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from gatekey.core import builtin, specs
from gatekey.core.audit import describe
from gatekey.core.decisions import CompiledSpec
from gatekey.core.entities import (
    ApiKey,
    Creator,
    Deleted,
    Identified,
    KeyState,
    Principal,
    Product,
    Tenant,
    owner_kind,
)
from gatekey.core.errors import FailedPrecondition, InvalidRequest, NotFound
from gatekey.core.grants import Grant, GrantSet, in_words, without_repetitions
from gatekey.core.names import (
    ApiKeyName,
    KeyOwnerName,
    MachineUserName,
    MemberName,
    ProductName,
    TenantName,
    format_key_id,
    new_key_uid,
)
from gatekey.core.secrets import Digest, Mint
from gatekey.core.specs import AccessMode, KeyKind, KeyOwner, Lifetime

from gatekey_server.authorization import actors
from gatekey_server.authorization.actors import Actor
from gatekey_server.authorization.callers import Caller, outlives
from gatekey_server.commands import limits, lookup
from gatekey_server.commands.mutations import Mutation, MutationOutcome, check_etag, run
from gatekey_server.commands.paging import Taker, fill
from gatekey_server.commands.principals import insert_machine_user, machine_user_lifetime
from gatekey_server.store import api_keys, audit, principals, tenants
from gatekey_server.store.database import Connection, Database
from gatekey_server.store.slices import Slice

SLICE_ROWS = 25
"""How many keys are read at once: with all they may be given, a few MB."""

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
    """What is to become of a key. `fields` names what is changed; the rest of the values is not looked at."""

    fields: frozenset[str]
    display_name: str = ""
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    mode: AccessMode | None = None
    grants: tuple[Grant, ...] = ()
    expire_time: datetime | None = None


KeyAndSpec = tuple[ApiKey, CompiledSpec]
"""A key, and the compiled spec of its product."""


@dataclass(frozen=True, slots=True)
class CreatedApiKey:
    """A key that was created, and the machine user that was created with it, if one was."""

    key: ApiKey
    machine_user: Principal | None
    compiled: CompiledSpec


async def create_api_key(
    database: Database, mutation: Mutation[CreatedApiKey], mint: Mint, new: NewApiKey
) -> CreatedApiKey:
    """Create a key; `mint` then holds its secret.

    Raises `InvalidRequest` (`OWNER_*`, `MODE_*`, `GRANTS_*`, `EXPIRE_TIME_*`), `FailedPrecondition`
    (`PUBLISHABLE_KEYS_NOT_OFFERED`, `MACHINE_USERS_NOT_OFFERED`, `MACHINE_USER_HAS_KEY`), `AlreadyExists`
    (`MACHINE_USER_EXISTS`), `ResourceExhausted` (`LIMIT_REACHED`), `PermissionDenied`
    (`TOKEN_EXCEEDS_CALLER`, `EXCEEDS_ACTOR`, `KEY_OF_OTHER_MEMBER`), and as `lookup.tenant_for_change` and
    `actors.authorise`.
    """
    with_machine_user = isinstance(new.owner, NewMachineUser)
    mutation.demand(lambda caller: authorise_creation(caller, new.parent, with_machine_user=with_machine_user))
    _check_owner(new)
    if new.actor_required and new.parent.product != builtin.PRODUCT.product:
        raise InvalidRequest.at(
            "api_key.actor_required", "ACTOR_REQUIRED_NOT_ALLOWED", "only service tokens change anything"
        )
    if new.grants:
        specs.validate_form(new.grants, "api_key.grants")

    async def work(connection: Connection) -> MutationOutcome[CreatedApiKey]:
        product, tenant = await lookup.tenant_for_change(connection, new.parent)
        compiled = product.compiled
        owner_name = _owner_name(compiled, mutation, new)
        actor = await _authorise_creation(connection, mutation, compiled, tenant, new, owner_name)
        _check_owner_offered(compiled, new, owner_name)
        mode = _check_permissions(compiled, new.kind, new.mode, new.grants)
        expire_time = _check_expiry(compiled, new.kind, new.expire_time, mutation.caller.now)
        await limits.refuse_another_key(connection, product, tenant, mutation.caller.now)
        grants = without_repetitions(new.grants)
        owner = await _owner(connection, product, tenant, owner_name)
        _refuse_too_much(actor, owner, new.kind, mode, grants)
        _refuse_stronger_token(mutation, tenant, mode, grants, actor_required=new.actor_required)
        _refuse_lasting_token(mutation, tenant, expire_time)
        uid = new_uid(mutation.caller.now)
        await api_keys.insert(
            connection,
            tenant,
            uid,
            owner=owner,
            display_name=new.display_name,
            description=new.description,
            labels=new.labels,
            kind=new.kind,
            mode=mode,
            grants=grants,
            expire_time=expire_time,
            secret=mint(compiled.spec.prefixes[new.kind]),
            creator=await _creator(connection, mutation),
            actor_required=new.actor_required,
        )
        key = await lookup.api_key(connection, tenant, ApiKeyName(tenant.name, format_key_id(uid)))
        created = CreatedApiKey(key, owner if isinstance(new.owner, NewMachineUser) else None, compiled)
        return MutationOutcome(created, key.name, None, describe(key))

    return await run(database, mutation, new.parent, work)


def authorise_creation(caller: Caller, parent: TenantName, *, with_machine_user: bool) -> None:
    """Refuse a caller whose token does not let it create keys. Raises as `Caller.require`."""
    caller.require((*parent.path, "apiKeys"), "create")
    if with_machine_user:
        caller.require((*parent.path, "machineUsers"), "create")


async def get_api_key(database: Database, caller: Caller, name: ApiKeyName) -> KeyAndSpec:
    """Read a key. Raises `NotFound` (`PRODUCT_NOT_FOUND`, `TENANT_NOT_FOUND`, `API_KEY_NOT_FOUND`)."""
    caller.require(name.path, "get")
    async with database.connection() as connection:
        product, tenant = await lookup.product_and_tenant(connection, name.parent)
        return await lookup.api_key(connection, tenant, name), product.compiled


async def list_api_keys(
    database: Database,
    caller: Caller,
    parent: TenantName,
    after: uuid.UUID,
    page: Taker[KeyAndSpec],
    owner: KeyOwnerName | None,
) -> str | None:
    """List the keys in a tenant, or of one owner in it, from the one after `after`; answers the next cursor.

    Raises `NotFound` (`PRODUCT_NOT_FOUND`, `TENANT_NOT_FOUND`, `MEMBER_NOT_FOUND`, `MACHINE_USER_NOT_FOUND`).
    """
    caller.require((*parent.path, "apiKeys"), "list")
    if owner is not None:
        _refuse_other_tenant(owner, parent, "owner")
    async with database.connection() as connection:
        product, tenant = await lookup.product_and_tenant(connection, parent)
        whose = await _find_owner(connection, tenant, owner) if owner is not None else None

        async def read(after: uuid.UUID, limit: int) -> Slice[KeyAndSpec, uuid.UUID]:
            found = await api_keys.page(connection, tenant, after, limit, whose)
            return Slice([(key, product.compiled) for key in found.items], found.last)

        return await fill(page, read, after, lambda found: found[0].uid, SLICE_ROWS)


async def identify_secret(
    database: Database, caller: Caller, digests: Sequence[Digest]
) -> tuple[Identified, CompiledSpec | None]:
    """Find the key that a secret belongs or belonged to, whatever has become of either, and its compiled spec if any.

    Raises `NotFound` (`SECRET_NOT_FOUND`), also where the caller may not identify the key.
    """
    unknown = NotFound("SECRET_NOT_FOUND", "there is no key with this secret")
    if not digests:
        raise unknown
    async with database.connection() as connection:
        located = await api_keys.locate(connection, digests)
        if located is None or not caller.may(located[0].path, "identify"):
            raise unknown
        name, secret = located
        tenant = await tenants.get(connection, name.parent)
        key = await api_keys.get(connection, tenant, lookup.key_uid(name)) if tenant else None
        if key is None:
            told = await audit.last_before(connection, name.parent.product, name.parent.tenant, str(name))
            return Identified(name, None, secret, told or {}), None
        product = await lookup.product(connection, ProductName(name.parent.product))
        return Identified(name, key, secret), product.compiled


async def update_api_key(
    database: Database, mutation: Mutation[KeyAndSpec], name: ApiKeyName, etag: str, change: ApiKeyChange
) -> KeyAndSpec:
    """Change a key. It is validated as on creation.

    Raises `FailedPrecondition` (`API_KEY_REVOKED`), `Aborted` (`ETAG_MISMATCH`), `InvalidRequest`
    (`MODE_*`, `GRANTS_*`, `EXPIRE_TIME_*`), `PermissionDenied` (`TOKEN_EXCEEDS_CALLER`,
    `EXCEEDS_ACTOR`), `NotFound` (`API_KEY_NOT_FOUND`), and as `lookup.tenant_for_change` and
    `actors.authorise`.
    """
    mutation.caller.require(name.path, "update")
    if change.grants:
        specs.validate_form(change.grants, "api_key.grants")

    async def work(connection: Connection, held: _LockedKey) -> None:
        before = held.key
        if before.revoke_time is not None:
            raise FailedPrecondition("API_KEY_REVOKED", f"`{name}` was revoked, for good")
        values = {
            name_: getattr(change if name_ in change.fields else before, name_)
            for name_ in ("display_name", "description", "labels", "mode", "grants", "expire_time")
        }
        if values["mode"] is not AccessMode.RESTRICTED and "grants" not in change.fields:
            values["grants"] = ()
        if change.fields & {"mode", "grants"}:
            values["mode"] = _check_permissions(held.compiled, before.kind, values["mode"], values["grants"])
            values["grants"] = without_repetitions(values["grants"])
        if "expire_time" in change.fields:
            since = before.create_time
            now = mutation.caller.now
            values["expire_time"] = _check_expiry(held.compiled, before.kind, change.expire_time, now, since)
            if before.expire_time is not None and before.expire_time <= now:
                # It did not count any more, and does again.
                await limits.refuse_another_key(connection, held.product, held.tenant, now)
        held.refuse_too_much(values["mode"], values["grants"])
        required = held.key.actor_required
        _refuse_stronger_token(mutation, held.tenant, values["mode"], values["grants"], actor_required=required)
        if _gives_more(held.compiled, before, values["mode"], values["grants"], values["expire_time"]):
            _refuse_lasting_token(mutation, held.tenant, values["expire_time"])
        if any(values[name_] != getattr(before, name_) for name_ in values):
            await api_keys.update(connection, held.tenant, before.uid, **values)

    return await _change(database, mutation, name, "update", etag, work)


async def disable_api_key(
    database: Database, mutation: Mutation[KeyAndSpec], name: ApiKeyName, etag: str
) -> KeyAndSpec:
    """Switch a key off until it is enabled. Raises as `update_api_key`."""

    async def work(connection: Connection, held: _LockedKey) -> None:
        if held.key.disable_time is None:
            await api_keys.disable(connection, held.tenant, held.key.uid)

    return await _change(database, mutation, name, "disable", etag, work)


async def enable_api_key(database: Database, mutation: Mutation[KeyAndSpec], name: ApiKeyName, etag: str) -> KeyAndSpec:
    """Switch a disabled key on. Raises as `update_api_key`."""

    async def work(connection: Connection, held: _LockedKey) -> None:
        held.refuse_to_hand_out(mutation)
        if held.key.disable_time is not None:
            await api_keys.enable(connection, held.tenant, held.key.uid)

    return await _change(database, mutation, name, "enable", etag, work)


async def revoke_api_key(
    database: Database, mutation: Mutation[KeyAndSpec], name: ApiKeyName, etag: str, reason: str
) -> KeyAndSpec:
    """Switch a key off for good. Raises as `update_api_key`."""

    async def work(connection: Connection, held: _LockedKey) -> None:
        if held.key.revoke_time is None:
            await api_keys.revoke(connection, held.tenant, held.key.uid, reason)

    return await _change(database, mutation, name, "revoke", etag, work)


async def rotate_api_key(
    database: Database, mutation: Mutation[KeyAndSpec], mint: Mint, name: ApiKeyName, etag: str, grace: timedelta
) -> KeyAndSpec:
    """Give a key a new secret, which `mint` then holds; the old one lives on for the grace.

    Raises `FailedPrecondition` (`API_KEY_REVOKED`, `API_KEY_EXPIRED`,
    `PUBLISHABLE_KEYS_NOT_OFFERED`), `PermissionDenied` (`KEY_OF_OTHER_MEMBER`), and as `update_api_key`.
    """

    async def work(connection: Connection, held: _LockedKey) -> None:
        if held.key.owner is not None:
            actors.refuse_key_of_other_member(mutation, held.compiled, held.key.owner)
        state = held.key.state(mutation.caller.now)
        if state in (KeyState.REVOKED, KeyState.EXPIRED):
            raise FailedPrecondition(f"API_KEY_{state}", f"`{name}` is {state.lower()}: a new secret would not work")
        # Whoever rotates a key holds it.
        held.refuse_to_hand_out(mutation)
        # A spec that was forced may have left the key without its kind, and so without a prefix.
        _check_offered(held.compiled, held.key.kind)
        sealed = mint(held.compiled.spec.prefixes[held.key.kind])
        await api_keys.rotate(connection, held.tenant, held.key.uid, sealed, grace)

    return await _change(database, mutation, name, "rotate", etag, work)


async def delete_api_key(database: Database, mutation: Mutation[Deleted], name: ApiKeyName, etag: str) -> Deleted:
    """Delete a key, and its machine user where that lives only as long as its keys.

    Raises `Aborted` (`ETAG_MISMATCH`), `NotFound` (`API_KEY_NOT_FOUND`), and as
    `lookup.tenant_for_change` and `actors.authorise`.
    """
    mutation.require(name.path, "delete")

    async def work(connection: Connection) -> MutationOutcome[Deleted]:
        held = await _lock_key(connection, mutation, name, "delete", etag)
        machine_users = held.compiled.spec.machine_users
        bound = machine_users is not None and machine_users.lifetime is Lifetime.BOUND_TO_KEYS
        _, owner_uid = await api_keys.delete(connection, held.tenant, held.key.uid)
        took_owner = (
            bound and owner_uid is not None and await principals.delete_if_keyless(connection, held.tenant, owner_uid)
        )
        return MutationOutcome(Deleted(machine_users=int(took_owner), api_keys=1), name, describe(held.key), None)

    return await run(database, mutation, name.parent, work)


@dataclass(frozen=True, slots=True)
class _LockedKey:
    """A key in a locked tenant, and what decides about changes of it."""

    product: Product
    tenant: Tenant
    actor: Actor
    key: ApiKey
    owner: Principal | None
    """None where the key belongs to the tenant itself."""

    @property
    def compiled(self) -> CompiledSpec:
        return self.product.compiled

    def refuse_too_much(self, mode: AccessMode | None, grants: tuple[Grant, ...]) -> None:
        """Refuse to give the key more than its owner and the actor have."""
        _refuse_too_much(self.actor, self.owner, self.key.kind, mode, grants)

    def refuse_to_hand_out(self, mutation: Mutation[Any]) -> None:
        """Refuse to hand out the key as it is where it has more than everyone concerned."""
        self.refuse_too_much(self.key.mode, self.key.grants)
        required = self.key.actor_required
        _refuse_stronger_token(mutation, self.tenant, self.key.mode, self.key.grants, actor_required=required)
        _refuse_lasting_token(mutation, self.tenant, self.key.expire_time)


async def _lock_key(
    connection: Connection, mutation: Mutation[Any], name: ApiKeyName, action: str, etag: str
) -> _LockedKey:
    product, tenant = await lookup.tenant_for_change(connection, name.parent)
    compiled = product.compiled
    # Who may not administer any key is not told which exist.
    key = await api_keys.get(connection, tenant, lookup.key_uid(name))
    actor = await actors.authorise(
        connection, mutation, compiled, tenant, "apiKeys", action, owner=key.owner if key else None
    )
    if key is None:
        raise lookup.api_key_not_found(name)
    check_etag(etag, key.etag)
    owner = None
    if key.owner is not None and not isinstance(key.owner, TenantName):
        owner = await principals.get(connection, tenant, key.owner)
    return _LockedKey(product, tenant, actor, key, owner)


async def _change(
    database: Database,
    mutation: Mutation[KeyAndSpec],
    name: ApiKeyName,
    action: str,
    etag: str,
    work: Callable[[Connection, _LockedKey], Awaitable[None]],
) -> KeyAndSpec:
    mutation.require(name.path, action)

    async def change(connection: Connection) -> MutationOutcome[KeyAndSpec]:
        held = await _lock_key(connection, mutation, name, action, etag)
        await work(connection, held)
        after = await lookup.api_key(connection, held.tenant, name)
        return MutationOutcome((after, held.compiled), name, describe(held.key), describe(after))

    return await run(database, mutation, name.parent, change)


async def _authorise_creation(
    connection: Connection,
    mutation: Mutation[CreatedApiKey],
    compiled: CompiledSpec,
    tenant: Tenant,
    new: NewApiKey,
    owner: KeyOwnerName | NewMachineUser | None,
) -> Actor:
    if isinstance(owner, NewMachineUser):
        actor = await actors.authorise(connection, mutation, compiled, tenant, "machineUsers", "create")
        actor.may_create_machine_users()
        return actor
    actor = await actors.authorise(connection, mutation, compiled, tenant, "apiKeys", "create", owner=owner)
    if owner is not None:
        actors.refuse_key_of_other_member(mutation, compiled, owner)
    return actor


def _refuse_too_much(
    actor: Actor,
    owner: Principal | None,
    kind: KeyKind,
    mode: AccessMode | None,
    grants: tuple[Grant, ...],
) -> None:
    compiled, chosen = actor.compiled, GrantSet.of(grants)
    role = actors.role_of(compiled, owner) if owner else None
    if owner is not None and mode is AccessMode.RESTRICTED:
        actors.refuse_more_than_owner(compiled, chosen, role)
    given = compiled.publishable_grants if kind is KeyKind.PUBLISHABLE else compiled.key_grants(mode, chosen)
    actor.may_give_key(given, compiled.role_grants(role) if owner else None)


def _check_owner(new: NewApiKey) -> None:
    if new.owner is None:
        return
    if new.kind is KeyKind.PUBLISHABLE:
        raise InvalidRequest.at("api_key.owner", "OWNER_NOT_ALLOWED", "a publishable key belongs to its tenant")
    if not isinstance(new.owner, NewMachineUser):
        _refuse_other_tenant(new.owner, new.parent, "api_key.owner")


async def _creator(connection: Connection, mutation: Mutation[Any]) -> Creator:
    return Creator(
        actor=str(mutation.actor) if mutation.actor else "",
        caller=str(mutation.caller.name),
        caller_display_name=await api_keys.display_name(connection, *mutation.caller.snapshot.uid) or "",
    )


def _owner_name(
    compiled: CompiledSpec, mutation: Mutation[CreatedApiKey], new: NewApiKey
) -> KeyOwnerName | NewMachineUser | None:
    """The owner of a new key: the one that was named, or the product's default; None for neither."""
    if new.owner is not None or new.kind is KeyKind.PUBLISHABLE:
        return new.owner
    default = compiled.spec.secret_keys.default_owner if compiled.spec.secret_keys else None
    if default is KeyOwner.TENANT:
        return new.parent
    return mutation.actor if default is KeyOwner.MEMBER and isinstance(mutation.actor, MemberName) else None


def _check_owner_offered(compiled: CompiledSpec, new: NewApiKey, owner: KeyOwnerName | NewMachineUser | None) -> None:
    if new.kind is KeyKind.PUBLISHABLE:
        return
    if isinstance(owner, NewMachineUser) and compiled.spec.machine_users is None:
        # Told when it is to be created.
        return
    offered = compiled.spec.secret_keys.offered_owners if compiled.spec.secret_keys else ()
    words = " or ".join(_OWNERS_IN_WORDS[kind].format(tenant=compiled.tenant_noun) for kind in offered)
    if owner is None:
        raise InvalidRequest.at("api_key.owner", "OWNER_REQUIRED", f"{words} is required")
    kind = KeyOwner.MACHINE_USER if isinstance(owner, NewMachineUser) else owner_kind(owner)
    if kind not in offered:
        raise InvalidRequest.at("api_key.owner", "OWNER_NOT_OFFERED", f"a key of this product belongs to {words}")


def _refuse_other_tenant(owner: KeyOwnerName, parent: TenantName, field: str) -> None:
    if (owner if isinstance(owner, TenantName) else owner.parent) != parent:
        raise InvalidRequest.at(field, "OWNER_OF_OTHER_TENANT", f"the owner is not of `{parent}`")


def _check_offered(compiled: CompiledSpec, kind: KeyKind) -> None:
    if kind is KeyKind.PUBLISHABLE and compiled.spec.publishable_keys is None:
        raise FailedPrecondition("PUBLISHABLE_KEYS_NOT_OFFERED", "this product has no publishable keys")


def _check_permissions(
    compiled: CompiledSpec, kind: KeyKind, wanted: AccessMode | None, grants: tuple[Grant, ...]
) -> AccessMode | None:
    """Answer the mode that a key gets, once it is sure that the spec lets it have that and its grants."""
    if kind is KeyKind.PUBLISHABLE:
        _check_offered(compiled, kind)
        if wanted is not None:
            raise InvalidRequest.at("api_key.mode", "MODE_NOT_ALLOWED", "a publishable key has no mode")
        if grants:
            raise InvalidRequest.at("api_key.grants", "GRANTS_NOT_ALLOWED", "those of a publishable key are the spec's")
        return None
    offered = compiled.spec.secret_keys
    if offered is None:
        raise AssertionError("an applied spec has a compiled spec for secret keys")
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


def _check_expiry(
    compiled: CompiledSpec, kind: KeyKind, wanted: datetime | None, now: datetime, since: datetime | None = None
) -> datetime | None:
    """Answer when a key expires; `since` is its creation, where that is not now."""
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


async def _owner(
    connection: Connection, product: Product, tenant: Tenant, owner: KeyOwnerName | NewMachineUser | None
) -> Principal | None:
    """Find or create the principal that is to own a key; None where the tenant itself does."""
    if isinstance(owner, NewMachineUser):
        machine_user_lifetime(product.compiled)
        return await insert_machine_user(connection, product, tenant, owner.name, owner.display_name)
    if owner is None or isinstance(owner, TenantName):
        return None
    principal = await lookup.principal(connection, tenant, owner)
    machine_users = product.compiled.spec.machine_users
    bound = machine_users is not None and machine_users.lifetime is Lifetime.BOUND_TO_KEYS
    if principal.is_machine_user and bound and await principals.has_key(connection, tenant, principal):
        raise FailedPrecondition(
            "MACHINE_USER_HAS_KEY", f"`{owner}` has its one key: rotate that, or create another machine user"
        )
    return principal


async def _find_owner(connection: Connection, tenant: Tenant, owner: KeyOwnerName) -> Principal | Tenant:
    return tenant if isinstance(owner, TenantName) else await lookup.principal(connection, tenant, owner)


def _refuse_stronger_token(
    mutation: Mutation[Any],
    tenant: Tenant,
    mode: AccessMode | None,
    grants: tuple[Grant, ...],
    *,
    actor_required: bool,
) -> None:
    """Refuse a caller that would leave a service token behind with more than its own has."""
    if tenant.name.product == builtin.PRODUCT.product:
        given = GrantSet.of(grants)
        mutation.demand(lambda caller: caller.refuse_to_give(mode, given))
        mutation.demand(lambda caller: caller.refuse_to_free(actor_required=actor_required))


def _refuse_lasting_token(mutation: Mutation[Any], tenant: Tenant, expire_time: datetime | None) -> None:
    """Refuse a caller that would leave a service token behind that ends later than its own."""
    if tenant.name.product == builtin.PRODUCT.product:
        mutation.demand(lambda caller: caller.refuse_to_outlive(expire_time))


def _gives_more(
    compiled: CompiledSpec,
    before: ApiKey,
    mode: AccessMode | None,
    grants: tuple[Grant, ...],
    expire_time: datetime | None,
) -> bool:
    """Whether a key would have more than before, or for longer."""
    had = compiled.key_grants(before.mode, GrantSet.of(before.grants))
    has = compiled.key_grants(mode, GrantSet.of(grants))
    return not had.contains(has) or outlives(expire_time, before.expire_time)


def new_uid(now: datetime) -> uuid.UUID:
    """Make the uid of a key that is created now."""
    return new_key_uid(int(now.timestamp() * 1000), secrets.randbits(74))
