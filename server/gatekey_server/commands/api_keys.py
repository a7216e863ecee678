"""The life of API keys."""

import secrets
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from gatekey_server.commands import actors, limits, lookup, people
from gatekey_server.commands.actors import Actor
from gatekey_server.commands.callers import Caller
from gatekey_server.commands.mutations import Change, Mutation, check_etag, run
from gatekey_server.commands.paging import Page
from gatekey_server.domain import builtin, specs
from gatekey_server.domain.audit import describe
from gatekey_server.domain.decisions import Policy
from gatekey_server.domain.entities import ApiKey, Deleted, KeyState, Principal, Product, Tenant
from gatekey_server.domain.errors import FailedPrecondition, InvalidRequest, NotFound, PermissionDenied
from gatekey_server.domain.grants import Grant, GrantSet
from gatekey_server.domain.names import (
    ApiKeyName,
    MachineUserName,
    PrincipalName,
    TenantName,
    format_key_id,
    new_key_uid,
)
from gatekey_server.domain.secrets import Digest, Mint
from gatekey_server.domain.specs import AccessMode, KeyKind, Lifetime
from gatekey_server.store import api_keys, principals
from gatekey_server.store.database import Connection, Database


@dataclass(frozen=True, slots=True)
class NewMachineUser:
    """A machine user that is created together with its first key."""

    name: MachineUserName
    display_name: str


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A key to be created. `mode` None stands for the product's default."""

    parent: TenantName
    display_name: str
    kind: KeyKind = KeyKind.SECRET
    owner: PrincipalName | NewMachineUser | None = None
    mode: AccessMode | None = None
    grants: tuple[Grant, ...] = ()
    expire_time: datetime | None = None
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


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


@dataclass(frozen=True, slots=True)
class CreatedApiKey:
    """A key that was created, and the machine user that was created with it, if one was."""

    key: ApiKey
    machine_user: Principal | None
    policy: Policy


async def create_api_key(
    database: Database, mutation: Mutation[CreatedApiKey], mint: Mint, new: NewApiKey
) -> CreatedApiKey:
    """Create a key; `mint` then holds its secret.

    Raises `InvalidRequest` (`OWNER_*`, `MODE_*`, `GRANTS_*`, `EXPIRE_TIME_*`), `FailedPrecondition`
    (`PUBLISHABLE_KEYS_NOT_OFFERED`, `MACHINE_USERS_NOT_OFFERED`), `AlreadyExists`
    (`MACHINE_USER_EXISTS`), `ResourceExhausted` (`LIMIT_REACHED`), `PermissionDenied`
    (`TOKEN_EXCEEDS_CALLER`, `EXCEEDS_ACTOR`), and as `lookup.tenant_for_change` and `actors.authorise`.
    """
    caller = mutation.caller
    caller.require((*new.parent.path, "apiKeys"), "create")
    if isinstance(new.owner, NewMachineUser):
        caller.require((*new.parent.path, "machineUsers"), "create")
    _check_owner(new)

    async def work(connection: Connection) -> Change[CreatedApiKey]:
        product, tenant = await lookup.tenant_for_change(connection, new.parent)
        policy = product.policy
        actor = await _authorise_creation(connection, mutation, policy, tenant, new)
        mode = _check_permissions(policy, new.kind, new.mode, new.grants)
        expire_time = _check_expiry(policy, new.kind, new.expire_time, caller.now)
        await limits.refuse_another_key(connection, product, tenant)
        owner = await _owner(connection, product, tenant, new)
        role = actors.role_of(policy, owner) if owner else None
        _refuse_too_much(caller, actor, policy, tenant, new.kind, mode, new.grants, role)
        _refuse_to_outlive(caller, tenant, expire_time)
        uid = new_uid(caller.now)
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
            grants=new.grants,
            expire_time=expire_time,
            secret=mint(policy.spec.prefixes[new.kind]),
        )
        key = await lookup.api_key(connection, tenant, ApiKeyName(tenant.name, format_key_id(uid)))
        created = CreatedApiKey(key, owner if isinstance(new.owner, NewMachineUser) else None, policy)
        return Change(created, key.name, None, describe(key))

    return await run(database, mutation, work)


async def get_api_key(database: Database, caller: Caller, name: ApiKeyName) -> ApiKey:
    """Read a key. Raises `NotFound` (`PRODUCT_NOT_FOUND`, `TENANT_NOT_FOUND`, `API_KEY_NOT_FOUND`)."""
    caller.require(name.path, "get")
    async with database.connection() as connection:
        tenant = await lookup.tenant(connection, name.parent)
        return await lookup.api_key(connection, tenant, name)


async def list_api_keys(
    database: Database, caller: Caller, parent: TenantName, after: uuid.UUID, size: int, owner: PrincipalName | None
) -> Page[ApiKey]:
    """List the keys of a tenant, or of one owner in it, from the one after `after`.

    Raises `NotFound` (`PRODUCT_NOT_FOUND`, `TENANT_NOT_FOUND`, `MEMBER_NOT_FOUND`, `MACHINE_USER_NOT_FOUND`).
    """
    caller.require((*parent.path, "apiKeys"), "list")
    if owner is not None:
        _refuse_other_tenant(owner, parent, "owner")
    async with database.connection() as connection:
        tenant = await lookup.tenant(connection, parent)
        principal = await lookup.principal(connection, tenant, owner) if owner is not None else None
        found = await api_keys.page(connection, tenant, after, size + 1, principal)
    return Page.of(found, size, lambda key: key.uid)


async def identify_secret(database: Database, caller: Caller, digests: Sequence[Digest]) -> ApiKey:
    """Find the key that a secret belongs to, whatever its state.

    Raises `NotFound` (`SECRET_NOT_FOUND`), also where the caller may not identify the key.
    """
    unknown = NotFound("SECRET_NOT_FOUND", "there is no key with this secret")
    if not digests:
        raise unknown
    async with database.connection() as connection:
        name = await api_keys.locate(connection, digests)
        if name is None or not caller.may(name.path, "identify"):
            raise unknown
        tenant = await lookup.tenant(connection, name.parent)
        return await lookup.api_key(connection, tenant, name)


async def update_api_key(
    database: Database, mutation: Mutation[ApiKey], name: ApiKeyName, etag: str, change: ApiKeyChange
) -> ApiKey:
    """Change a key. It is validated as on creation.

    Raises `FailedPrecondition` (`API_KEY_REVOKED`), `Aborted` (`ETAG_MISMATCH`), `InvalidRequest`
    (`MODE_*`, `GRANTS_*`, `EXPIRE_TIME_*`), `PermissionDenied` (`TOKEN_EXCEEDS_CALLER`,
    `EXCEEDS_ACTOR`), `NotFound` (`API_KEY_NOT_FOUND`), and as `lookup.tenant_for_change` and
    `actors.authorise`.
    """

    async def work(connection: Connection, held: _Held) -> None:
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
            values["mode"] = _check_permissions(held.policy, before.kind, values["mode"], values["grants"])
        if "expire_time" in change.fields:
            since = before.create_time
            values["expire_time"] = _check_expiry(
                held.policy, before.kind, change.expire_time, mutation.caller.now, since
            )
        held.refuse_too_much(mutation.caller, values["mode"], values["grants"])
        if "expire_time" in change.fields:
            _refuse_to_outlive(mutation.caller, held.tenant, values["expire_time"])
        if any(values[name_] != getattr(before, name_) for name_ in values):
            await api_keys.update(connection, held.tenant, before.uid, **values)

    return await _change(database, mutation, name, "update", etag, work)


async def disable_api_key(database: Database, mutation: Mutation[ApiKey], name: ApiKeyName, etag: str) -> ApiKey:
    """Switch a key off until it is enabled. Raises as `update_api_key`."""

    async def work(connection: Connection, held: _Held) -> None:
        if held.key.disable_time is None:
            await api_keys.disable(connection, held.tenant, held.key.uid)

    return await _change(database, mutation, name, "disable", etag, work)


async def enable_api_key(database: Database, mutation: Mutation[ApiKey], name: ApiKeyName, etag: str) -> ApiKey:
    """Switch a disabled key on. Raises as `update_api_key`."""

    async def work(connection: Connection, held: _Held) -> None:
        held.refuse_too_much(mutation.caller, held.key.mode, held.key.grants)
        if held.key.disable_time is not None:
            await api_keys.enable(connection, held.tenant, held.key.uid)

    return await _change(database, mutation, name, "enable", etag, work)


async def revoke_api_key(
    database: Database, mutation: Mutation[ApiKey], name: ApiKeyName, etag: str, reason: str
) -> ApiKey:
    """Switch a key off for good. Raises as `update_api_key`."""

    async def work(connection: Connection, held: _Held) -> None:
        if held.key.revoke_time is None:
            await api_keys.revoke(connection, held.tenant, held.key.uid, reason)

    return await _change(database, mutation, name, "revoke", etag, work)


async def rotate_api_key(
    database: Database, mutation: Mutation[ApiKey], mint: Mint, name: ApiKeyName, etag: str, grace: timedelta
) -> ApiKey:
    """Give a key a new secret, which `mint` then holds; the old one lives on for the grace.

    Raises `FailedPrecondition` (`API_KEY_REVOKED`, `API_KEY_EXPIRED`,
    `PUBLISHABLE_KEYS_NOT_OFFERED`), and as `update_api_key`.
    """

    async def work(connection: Connection, held: _Held) -> None:
        state = held.key.state(mutation.caller.now)
        if state in (KeyState.REVOKED, KeyState.EXPIRED):
            raise FailedPrecondition(f"API_KEY_{state}", f"`{name}` is {state.lower()}: a new secret would not work")
        # Whoever rotates a key holds it.
        held.refuse_too_much(mutation.caller, held.key.mode, held.key.grants)
        _refuse_to_outlive(mutation.caller, held.tenant, held.key.expire_time)
        # A spec that was forced may have left the key without its kind, and so without a prefix.
        _check_offered(held.policy, held.key.kind)
        sealed = mint(held.policy.spec.prefixes[held.key.kind])
        await api_keys.rotate(connection, held.tenant, held.key.uid, sealed, grace)

    return await _change(database, mutation, name, "rotate", etag, work)


async def delete_api_key(database: Database, mutation: Mutation[Deleted], name: ApiKeyName, etag: str) -> Deleted:
    """Delete a key, and its machine user where that lives only as long as its keys.

    Raises `Aborted` (`ETAG_MISMATCH`), `NotFound` (`API_KEY_NOT_FOUND`), and as
    `lookup.tenant_for_change` and `actors.authorise`.
    """
    mutation.caller.require(name.path, "delete")

    async def work(connection: Connection) -> Change[Deleted]:
        held = await _hold(connection, mutation, name, "delete", etag)
        machine_users = held.policy.spec.machine_users
        bound = machine_users is not None and machine_users.lifetime is Lifetime.BOUND_TO_KEYS
        _, owner_uid = await api_keys.delete(connection, held.tenant, held.key.uid)
        took_owner = (
            bound and owner_uid is not None and await principals.delete_if_keyless(connection, held.tenant, owner_uid)
        )
        return Change(Deleted(machine_users=int(took_owner), api_keys=1), name, describe(held.key), None)

    return await run(database, mutation, work)


@dataclass(frozen=True, slots=True)
class _Held:
    """A key in a locked tenant, and what decides about changes of it."""

    tenant: Tenant
    policy: Policy
    actor: Actor
    key: ApiKey
    owner_role: str | None

    def refuse_too_much(self, caller: Caller, mode: AccessMode | None, grants: tuple[Grant, ...]) -> None:
        """Refuse to hand the key out with more than everyone concerned has."""
        _refuse_too_much(caller, self.actor, self.policy, self.tenant, self.key.kind, mode, grants, self.owner_role)


async def _hold(connection: Connection, mutation: Mutation[Any], name: ApiKeyName, action: str, etag: str) -> _Held:
    product, tenant = await lookup.tenant_for_change(connection, name.parent)
    policy = product.policy
    # Who may not administer any key is not told which exist.
    key = await api_keys.get(connection, tenant, lookup.key_uid(name))
    actor = await actors.authorise(
        connection, mutation, policy, tenant, "apiKeys", action, owner=key.owner if key else None
    )
    if key is None:
        raise lookup.api_key_not_found(name)
    check_etag(etag, key.etag)
    owner = await principals.get(connection, tenant, key.owner) if key.owner else None
    return _Held(tenant, policy, actor, key, actors.role_of(policy, owner) if owner else None)


async def _change(
    database: Database,
    mutation: Mutation[ApiKey],
    name: ApiKeyName,
    action: str,
    etag: str,
    work: Callable[[Connection, _Held], Awaitable[None]],
) -> ApiKey:
    mutation.caller.require(name.path, action)

    async def change(connection: Connection) -> Change[ApiKey]:
        held = await _hold(connection, mutation, name, action, etag)
        await work(connection, held)
        after = await lookup.api_key(connection, held.tenant, name)
        return Change(after, name, describe(held.key), describe(after))

    return await run(database, mutation, change)


async def _authorise_creation(
    connection: Connection, mutation: Mutation[CreatedApiKey], policy: Policy, tenant: Tenant, new: NewApiKey
) -> Actor:
    if isinstance(new.owner, NewMachineUser):
        actor = await actors.authorise(connection, mutation, policy, tenant, "machineUsers", "create")
        actor.may_give_role(policy.machine_user_role)
        return actor
    return await actors.authorise(connection, mutation, policy, tenant, "apiKeys", "create", owner=new.owner)


def _refuse_too_much(
    caller: Caller,
    actor: Actor,
    policy: Policy,
    tenant: Tenant,
    kind: KeyKind,
    mode: AccessMode | None,
    grants: tuple[Grant, ...],
    owner_role: str | None,
) -> None:
    given = GrantSet.of(grants)
    if tenant.name.product == builtin.PRODUCT.product and not caller.has_all_of(mode, given):
        raise PermissionDenied("TOKEN_EXCEEDS_CALLER", "a service token cannot be given more than its maker has")
    if mode is AccessMode.RESTRICTED:
        actors.refuse_more_than_owner(policy, given, owner_role)
    actor.may_give_key(kind, mode, given, owner_role)


def _check_owner(new: NewApiKey) -> None:
    if new.kind is KeyKind.PUBLISHABLE:
        if new.owner is not None:
            raise InvalidRequest.at("api_key.owner", "OWNER_NOT_ALLOWED", "a publishable key belongs to its tenant")
        return
    if new.owner is None:
        raise InvalidRequest.at(
            "api_key.owner", "OWNER_REQUIRED", "a member, a machine user or a new machine user is required"
        )
    if not isinstance(new.owner, NewMachineUser):
        _refuse_other_tenant(new.owner, new.parent, "api_key.owner")


def _refuse_other_tenant(owner: PrincipalName, parent: TenantName, field: str) -> None:
    if owner.parent != parent:
        raise InvalidRequest.at(field, "OWNER_OF_OTHER_TENANT", f"the owner is not of `{parent}`")


def _check_offered(policy: Policy, kind: KeyKind) -> None:
    if kind is KeyKind.PUBLISHABLE and policy.spec.publishable_keys is None:
        raise FailedPrecondition("PUBLISHABLE_KEYS_NOT_OFFERED", "this product has no publishable keys")


def _check_permissions(
    policy: Policy, kind: KeyKind, wanted: AccessMode | None, grants: tuple[Grant, ...]
) -> AccessMode | None:
    """Answer the mode that a key gets, once it is sure that the spec lets it have that and its grants."""
    if kind is KeyKind.PUBLISHABLE:
        _check_offered(policy, kind)
        if wanted is not None:
            raise InvalidRequest.at("api_key.mode", "MODE_NOT_ALLOWED", "a publishable key has no mode")
        if grants:
            raise InvalidRequest.at("api_key.grants", "GRANTS_NOT_ALLOWED", "those of a publishable key are the spec's")
        return None
    offered = policy.spec.secret_keys
    if offered is None:
        raise AssertionError("an applied spec has a policy for secret keys")
    mode = wanted or offered.default_mode
    if mode not in offered.modes:
        raise InvalidRequest.at("api_key.mode", "MODE_NOT_OFFERED", f"one of {', '.join(offered.modes)} is required")
    if mode is not AccessMode.RESTRICTED:
        if grants:
            raise InvalidRequest.at("api_key.grants", "GRANTS_NOT_ALLOWED", f"a key of mode {mode} has none")
        return mode
    if not grants:
        raise InvalidRequest.at("api_key.grants", "GRANTS_REQUIRED", "a restricted key needs at least one")
    specs.validate_grants(policy.spec, grants, "api_key.grants")
    if not specs.grantable(offered, grants):
        raise InvalidRequest.at("api_key.grants", "GRANTS_NOT_OFFERED", "more than keys of this product can be given")
    return mode


def _check_expiry(
    policy: Policy, kind: KeyKind, wanted: datetime | None, now: datetime, since: datetime | None = None
) -> datetime | None:
    """Answer when a key expires; `since` is its creation, where that is not now."""
    secret_keys = policy.spec.secret_keys
    longest = secret_keys.max_lifetime if secret_keys and kind is KeyKind.SECRET else None
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


async def _owner(connection: Connection, product: Product, tenant: Tenant, new: NewApiKey) -> Principal | None:
    if new.owner is None:
        return None
    if isinstance(new.owner, NewMachineUser):
        people.lifetime(product.policy)
        return await people.insert_machine_user(connection, product, tenant, new.owner.name, new.owner.display_name)
    return await lookup.principal(connection, tenant, new.owner)


def _refuse_to_outlive(caller: Caller, tenant: Tenant, expire_time: datetime | None) -> None:
    """A service token that ends could otherwise leave one behind that does not."""
    end = caller.fact.expire_time
    if tenant.name.product == builtin.PRODUCT.product and end and (expire_time is None or expire_time > end):
        raise PermissionDenied("TOKEN_EXCEEDS_CALLER", "a service token cannot outlive its maker")


def new_uid(now: datetime) -> uuid.UUID:
    """Make the uid of a key that is created now."""
    return new_key_uid(int(now.timestamp() * 1000), secrets.randbits(74))
