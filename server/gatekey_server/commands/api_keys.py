"""Creating, reading, changing and deleting API keys."""

import secrets
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from gatekey.core import builtin, key_rules, specs
from gatekey.core.audit import describe
from gatekey.core.decisions import CompiledSpec
from gatekey.core.entities import ApiKey, Creator, Deleted, Identified, Principal, Product, Tenant
from gatekey.core.errors import NotFound
from gatekey.core.grants import Grant, GrantSet, without_repetitions
from gatekey.core.key_rules import ApiKeyChange, KeySettings, NewApiKey, NewMachineUser
from gatekey.core.names import ApiKeyName, KeyOwnerName, ProductName, TenantName, format_key_id, new_key_uid
from gatekey.core.secrets import Digest, Mint
from gatekey.core.specs import AccessMode, KeyKind

from gatekey_server.authorization import actors
from gatekey_server.authorization.actors import Actor
from gatekey_server.authorization.callers import Caller
from gatekey_server.commands import limits, lookup
from gatekey_server.commands.mutations import Mutation, MutationOutcome, check_etag, run
from gatekey_server.commands.paging import Taker, fill
from gatekey_server.commands.principals import insert_machine_user
from gatekey_server.store import api_keys, audit, principals, tenants
from gatekey_server.store.database import Connection, Database
from gatekey_server.store.slices import Slice

SLICE_ROWS = 25
"""How many keys are read at once. With the largest grants these are a few MB."""

KeyAndSpec = tuple[ApiKey, CompiledSpec]
"""A key, and the compiled spec of its product."""


@dataclass(frozen=True, slots=True)
class CreatedApiKey:
    """A new key, and the machine user that was created with it, if any."""

    key: ApiKey
    machine_user: Principal | None
    compiled: CompiledSpec


async def create_api_key(
    database: Database, mutation: Mutation[CreatedApiKey], mint: Mint, new: NewApiKey
) -> CreatedApiKey:
    """Create a key. Afterwards `mint` holds its secret.

    Raises `InvalidRequest` (`OWNER_*`, `MODE_*`, `GRANTS_*`, `EXPIRE_TIME_*`), `FailedPrecondition`
    (`PUBLISHABLE_KEYS_NOT_OFFERED`, `MACHINE_USERS_NOT_OFFERED`, `MACHINE_USER_HAS_KEY`), `AlreadyExists`
    (`MACHINE_USER_EXISTS`), `ResourceExhausted` (`LIMIT_REACHED`), `PermissionDenied`
    (`TOKEN_EXCEEDS_CALLER`, `EXCEEDS_ACTOR`, `KEY_OF_OTHER_MEMBER`), and as `lookup.tenant_for_change` and
    `actors.authorise`.
    """
    with_machine_user = isinstance(new.owner, NewMachineUser)
    mutation.demand(lambda caller: authorise_creation(caller, new.parent, with_machine_user=with_machine_user))
    key_rules.check_form(new)

    async def work(connection: Connection) -> MutationOutcome[CreatedApiKey]:
        product, tenant = await lookup.tenant_for_change(connection, new.parent)
        compiled = product.compiled
        owner_name = key_rules.choose_owner(compiled, new, mutation.actor)
        actor = await _authorise_creation(connection, mutation, compiled, tenant, owner_name)
        key_rules.check_owner_offered(compiled, new.kind, owner_name)
        mode = key_rules.check_permissions(compiled, new.kind, new.mode, new.grants)
        expire_time = key_rules.check_expiry(compiled, new.kind, new.expire_time, mutation.caller.now)
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
    """Raise as `Caller.require` unless the caller may create keys."""
    caller.require((*parent.path, "apiKeys"), "create")
    if with_machine_user:
        caller.require((*parent.path, "machineUsers"), "create")


async def get_api_key(database: Database, caller: Caller, name: ApiKeyName) -> KeyAndSpec:
    """Return a key. Raises `NotFound` (`PRODUCT_NOT_FOUND`, `TENANT_NOT_FOUND`, `API_KEY_NOT_FOUND`)."""
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
    """List the keys of a tenant, or of one owner in it, after the cursor `after`. Returns the next cursor.

    Raises `NotFound` (`PRODUCT_NOT_FOUND`, `TENANT_NOT_FOUND`, `MEMBER_NOT_FOUND`, `MACHINE_USER_NOT_FOUND`).
    """
    caller.require((*parent.path, "apiKeys"), "list")
    if owner is not None:
        key_rules.check_owner_tenant(owner, parent, "owner")
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
    """Return the key that a secret belongs or belonged to, in whatever state, and its compiled spec if it exists.

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

    async def work(connection: Connection, locked: _LockedKey) -> ApiKey:
        before, now = locked.key, mutation.caller.now
        after = key_rules.apply_change(locked.compiled, before, change, now)
        if key_rules.is_revived(before, change, now):
            await limits.refuse_another_key(connection, locked.product, locked.tenant, now)
        await locked.refuse_too_much(connection, after.mode, after.grants)
        required = before.actor_required
        _refuse_stronger_token(mutation, locked.tenant, after.mode, after.grants, actor_required=required)
        if key_rules.gives_more(locked.compiled, before, after):
            _refuse_lasting_token(mutation, locked.tenant, after.expire_time)
        if after == KeySettings.of(before):
            return before
        await api_keys.update(connection, locked.tenant, before.uid, after)
        return await lookup.api_key(connection, locked.tenant, name)

    return await _change(database, mutation, name, "update", etag, work)


async def disable_api_key(
    database: Database, mutation: Mutation[KeyAndSpec], name: ApiKeyName, etag: str
) -> KeyAndSpec:
    """Disable a key until it is enabled again. Raises as `update_api_key`."""

    async def work(connection: Connection, locked: _LockedKey) -> ApiKey:
        if locked.key.disable_time is not None:
            return locked.key
        return await api_keys.disable(connection, locked.tenant, locked.key)

    return await _change(database, mutation, name, "disable", etag, work)


async def enable_api_key(database: Database, mutation: Mutation[KeyAndSpec], name: ApiKeyName, etag: str) -> KeyAndSpec:
    """Enable a disabled key. Raises as `update_api_key`."""

    async def work(connection: Connection, locked: _LockedKey) -> ApiKey:
        await locked.refuse_to_hand_out(connection, mutation)
        if locked.key.disable_time is None:
            return locked.key
        return await api_keys.enable(connection, locked.tenant, locked.key)

    return await _change(database, mutation, name, "enable", etag, work)


async def revoke_api_key(
    database: Database, mutation: Mutation[KeyAndSpec], name: ApiKeyName, etag: str, reason: str
) -> KeyAndSpec:
    """Revoke a key for good. Raises as `update_api_key`."""

    async def work(connection: Connection, locked: _LockedKey) -> ApiKey:
        if locked.key.revoke_time is not None:
            return locked.key
        return await api_keys.revoke(connection, locked.tenant, locked.key, reason)

    return await _change(database, mutation, name, "revoke", etag, work)


async def rotate_api_key(
    database: Database, mutation: Mutation[KeyAndSpec], mint: Mint, name: ApiKeyName, etag: str, grace: timedelta
) -> KeyAndSpec:
    """Give a key a new secret, which `mint` then holds. The old secret keeps working for `grace`.

    Raises `FailedPrecondition` (`API_KEY_REVOKED`, `API_KEY_EXPIRED`,
    `PUBLISHABLE_KEYS_NOT_OFFERED`), `PermissionDenied` (`KEY_OF_OTHER_MEMBER`), and as `update_api_key`.
    """

    async def work(connection: Connection, locked: _LockedKey) -> ApiKey:
        if locked.key.owner is not None:
            key_rules.check_own_key(locked.compiled, locked.key.owner, mutation.actor)
        key_rules.check_rotation(locked.key, mutation.caller.now)
        # Whoever rotates a key gets its secret, so the same limits apply as to a creation.
        await locked.refuse_to_hand_out(connection, mutation)
        # A forced spec may no longer have this kind of key, and so no prefix for it.
        key_rules.check_kind_offered(locked.compiled, locked.key.kind)
        sealed = mint(locked.compiled.spec.prefixes[locked.key.kind])
        await api_keys.rotate(connection, locked.tenant, locked.key.uid, sealed, grace)
        return await lookup.api_key(connection, locked.tenant, name)

    return await _change(database, mutation, name, "rotate", etag, work)


async def delete_api_key(database: Database, mutation: Mutation[Deleted], name: ApiKeyName, etag: str) -> Deleted:
    """Delete a key, and its machine user where the spec binds it to its keys.

    Raises `Aborted` (`ETAG_MISMATCH`), `NotFound` (`API_KEY_NOT_FOUND`), and as
    `lookup.tenant_for_change` and `actors.authorise`.
    """
    mutation.require(name.path, "delete")

    async def work(connection: Connection) -> MutationOutcome[Deleted]:
        locked = await _lock_key(connection, mutation, name, "delete", etag)
        bound = key_rules.is_bound_to_keys(locked.compiled)
        _, owner_uid = await api_keys.delete(connection, locked.tenant, locked.key.uid)
        took_owner = (
            bound and owner_uid is not None and await principals.delete_if_keyless(connection, locked.tenant, owner_uid)
        )
        return MutationOutcome(Deleted(machine_users=int(took_owner), api_keys=1), name, describe(locked.key), None)

    return await run(database, mutation, name.parent, work)


@dataclass(frozen=True, slots=True)
class _LockedKey:
    """A key in a locked tenant, with the values that changes of it are checked against."""

    product: Product
    tenant: Tenant
    actor: Actor
    key: ApiKey

    @property
    def compiled(self) -> CompiledSpec:
        return self.product.compiled

    async def refuse_too_much(self, connection: Connection, mode: AccessMode | None, grants: tuple[Grant, ...]) -> None:
        """Raise where the key would have more permissions than its owner or the actor."""
        owner = None
        if self.key.owner is not None and not isinstance(self.key.owner, TenantName):
            owner = await principals.get(connection, self.tenant, self.key.owner)
        _refuse_too_much(self.actor, owner, self.key.kind, mode, grants)

    async def refuse_to_hand_out(self, connection: Connection, mutation: Mutation[Any]) -> None:
        """Raise where the key as it is has more permissions than its owner, the actor or the caller may hand out."""
        await self.refuse_too_much(connection, self.key.mode, self.key.grants)
        required = self.key.actor_required
        _refuse_stronger_token(mutation, self.tenant, self.key.mode, self.key.grants, actor_required=required)
        _refuse_lasting_token(mutation, self.tenant, self.key.expire_time)


async def _lock_key(
    connection: Connection, mutation: Mutation[Any], name: ApiKeyName, action: str, etag: str
) -> _LockedKey:
    product, tenant = await lookup.tenant_for_change(connection, name.parent)
    compiled = product.compiled
    # Authorised before `NOT_FOUND`: an actor that may not administer keys is not told which exist.
    key = await api_keys.get(connection, tenant, lookup.key_uid(name))
    actor = await actors.authorise(
        connection, mutation, compiled, tenant, "apiKeys", action, owner=key.owner if key else None
    )
    if key is None:
        raise lookup.api_key_not_found(name)
    check_etag(etag, key.etag)
    return _LockedKey(product, tenant, actor, key)


async def _change(
    database: Database,
    mutation: Mutation[KeyAndSpec],
    name: ApiKeyName,
    action: str,
    etag: str,
    work: Callable[[Connection, _LockedKey], Awaitable[ApiKey]],
) -> KeyAndSpec:
    """Change one key in one transaction; `work` returns the key as it is afterwards."""
    mutation.require(name.path, action)

    async def change(connection: Connection) -> MutationOutcome[KeyAndSpec]:
        locked = await _lock_key(connection, mutation, name, action, etag)
        after = await work(connection, locked)
        return MutationOutcome((after, locked.compiled), name, describe(locked.key), describe(after))

    return await run(database, mutation, name.parent, change)


async def _authorise_creation(
    connection: Connection,
    mutation: Mutation[CreatedApiKey],
    compiled: CompiledSpec,
    tenant: Tenant,
    owner: KeyOwnerName | NewMachineUser | None,
) -> Actor:
    if isinstance(owner, NewMachineUser):
        actor = await actors.authorise(connection, mutation, compiled, tenant, "machineUsers", "create")
        actor.may_create_machine_users()
        return actor
    actor = await actors.authorise(connection, mutation, compiled, tenant, "apiKeys", "create", owner=owner)
    if owner is not None:
        key_rules.check_own_key(compiled, owner, mutation.actor)
    return actor


def _refuse_too_much(
    actor: Actor,
    owner: Principal | None,
    kind: KeyKind,
    mode: AccessMode | None,
    grants: tuple[Grant, ...],
) -> None:
    compiled = actor.compiled
    if owner is not None:
        key_rules.check_owner_grants(compiled, owner, mode, grants)
    ceiling = compiled.role_grants(key_rules.role_of(compiled, owner)) if owner is not None else None
    actor.may_give_key(key_rules.given_by(compiled, kind, mode, grants), ceiling)


async def _creator(connection: Connection, mutation: Mutation[Any]) -> Creator:
    return Creator(
        actor=str(mutation.actor) if mutation.actor else "",
        caller=str(mutation.caller.name),
        caller_display_name=await api_keys.display_name(connection, *mutation.caller.snapshot.uid) or "",
    )


async def _owner(
    connection: Connection, product: Product, tenant: Tenant, owner: KeyOwnerName | NewMachineUser | None
) -> Principal | None:
    """Return the principal that is to own a key, created if necessary; None for the tenant itself."""
    compiled = product.compiled
    if isinstance(owner, NewMachineUser):
        key_rules.machine_user_lifetime(compiled)
        return await insert_machine_user(connection, product, tenant, owner.name, owner.display_name)
    if owner is None or isinstance(owner, TenantName):
        return None
    principal = await lookup.principal(connection, tenant, owner)
    if key_rules.has_one_key(compiled, principal) and await principals.has_key(connection, tenant, principal):
        raise key_rules.second_key(principal)
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
    """Raise where a service token would have more permissions than the caller's."""
    if tenant.name.product == builtin.PRODUCT.product:
        given = GrantSet.of(grants)
        mutation.demand(lambda caller: caller.refuse_to_give(mode, given))
        mutation.demand(lambda caller: caller.refuse_to_free(actor_required=actor_required))


def _refuse_lasting_token(mutation: Mutation[Any], tenant: Tenant, expire_time: datetime | None) -> None:
    """Raise where a service token would expire later than the caller's."""
    if tenant.name.product == builtin.PRODUCT.product:
        mutation.demand(lambda caller: caller.refuse_to_outlive(expire_time))


def new_uid(now: datetime) -> uuid.UUID:
    """Return a uid for a key that is created now."""
    return new_key_uid(int(now.timestamp() * 1000), secrets.randbits(74))
