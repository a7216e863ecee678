"""Creating, reading, listing and deleting API keys."""

import secrets
import uuid
from dataclasses import dataclass
from datetime import datetime

from gatekey_server.commands import lookup, people
from gatekey_server.commands.callers import Caller
from gatekey_server.commands.paging import Page
from gatekey_server.domain import builtin, specs
from gatekey_server.domain.decisions import Policy
from gatekey_server.domain.entities import ApiKey, Principal, Tenant
from gatekey_server.domain.errors import FailedPrecondition, InvalidRequest, PermissionDenied
from gatekey_server.domain.grants import Grant, GrantSet
from gatekey_server.domain.names import (
    ApiKeyName,
    MachineUserName,
    PrincipalName,
    TenantName,
    format_key_id,
    new_key_uid,
)
from gatekey_server.domain.secrets import Mint
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


@dataclass(frozen=True, slots=True)
class CreatedApiKey:
    """A key that was created, and the machine user that was created with it, if one was."""

    key: ApiKey
    machine_user: Principal | None
    policy: Policy


async def create_api_key(database: Database, caller: Caller, mint: Mint, new: NewApiKey) -> CreatedApiKey:
    """Create a key; `mint` then holds its secret.

    Raises `InvalidRequest` (`OWNER_*`, `MODE_*`, `GRANTS_*`, `EXPIRE_TIME_*`), `FailedPrecondition`
    (`PUBLISHABLE_KEYS_NOT_OFFERED`, `MACHINE_USERS_NOT_OFFERED`), `AlreadyExists`
    (`MACHINE_USER_EXISTS`), `PermissionDenied` (`TOKEN_EXCEEDS_CALLER`), and as `lookup.tenant_for_change`.
    """
    caller.require((*new.parent.path, "apiKeys"), "create")
    if isinstance(new.owner, NewMachineUser):
        caller.require((*new.parent.path, "machineUsers"), "create")
    _check_owner(new)

    async def work(connection: Connection) -> CreatedApiKey:
        product, tenant = await lookup.tenant_for_change(connection, new.parent)
        policy = product.policy
        mode = _check_permissions(policy, new)
        _refuse_more_than_caller(caller, mode, new)
        expire_time = _check_expiry(policy, new, caller.now)
        owner = await _owner(connection, tenant, policy, new)
        uid = new_uid(caller.now)
        await api_keys.insert(
            connection,
            tenant,
            uid,
            owner=owner,
            display_name=new.display_name,
            kind=new.kind,
            mode=mode,
            grants=new.grants,
            expire_time=expire_time,
            secret=mint(policy.spec.prefixes[new.kind]),
        )
        key = await lookup.api_key(connection, tenant, ApiKeyName(tenant.name, format_key_id(uid)))
        return CreatedApiKey(key, owner if isinstance(new.owner, NewMachineUser) else None, policy)

    return await database.transaction(work)


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


async def delete_api_key(database: Database, caller: Caller, name: ApiKeyName) -> None:
    """Delete a key, and its machine user where that lives only as long as its keys.

    Raises `NotFound` (`API_KEY_NOT_FOUND`), and as `lookup.tenant_for_change`.
    """
    caller.require(name.path, "delete")

    async def work(connection: Connection) -> None:
        product, tenant = await lookup.tenant_for_change(connection, name.parent)
        existed, owner_uid = await api_keys.delete(connection, tenant, lookup.key_uid(name))
        if not existed:
            raise lookup.api_key_not_found(name)
        machine_users = product.policy.spec.machine_users
        if owner_uid is not None and machine_users and machine_users.lifetime is Lifetime.BOUND_TO_KEYS:
            await principals.delete_if_keyless(connection, tenant, owner_uid)

    await database.transaction(work)


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


def _check_permissions(policy: Policy, new: NewApiKey) -> AccessMode | None:
    """Answer the mode that the key gets, once it is sure that the spec lets it have that and its grants."""
    if new.kind is KeyKind.PUBLISHABLE:
        if policy.spec.publishable_keys is None:
            raise FailedPrecondition("PUBLISHABLE_KEYS_NOT_OFFERED", "this product has no publishable keys")
        if new.mode is not None:
            raise InvalidRequest.at("api_key.mode", "MODE_NOT_ALLOWED", "a publishable key has no mode")
        if new.grants:
            raise InvalidRequest.at("api_key.grants", "GRANTS_NOT_ALLOWED", "those of a publishable key are the spec's")
        return None
    offered = policy.spec.secret_keys
    if offered is None:
        raise AssertionError("an applied spec has a policy for secret keys")
    mode = new.mode or offered.default_mode
    if mode not in offered.modes:
        raise InvalidRequest.at("api_key.mode", "MODE_NOT_OFFERED", f"one of {', '.join(offered.modes)} is required")
    if mode is not AccessMode.RESTRICTED:
        if new.grants:
            raise InvalidRequest.at("api_key.grants", "GRANTS_NOT_ALLOWED", f"a key of mode {mode} has none")
        return mode
    if not new.grants:
        raise InvalidRequest.at("api_key.grants", "GRANTS_REQUIRED", "a restricted key needs at least one")
    specs.validate_grants(policy.spec, new.grants, "api_key.grants")
    if not specs.grantable(offered, new.grants):
        raise InvalidRequest.at("api_key.grants", "GRANTS_NOT_OFFERED", "more than keys of this product can be given")
    return mode


def _refuse_more_than_caller(caller: Caller, mode: AccessMode | None, new: NewApiKey) -> None:
    is_token = new.parent.product == builtin.PRODUCT.product
    if is_token and not caller.has_all_of(mode, GrantSet.of(new.grants)):
        raise PermissionDenied("TOKEN_EXCEEDS_CALLER", "a service token cannot be given more than its maker has")


def _check_expiry(policy: Policy, new: NewApiKey, now: datetime) -> datetime | None:
    longest = policy.spec.secret_keys.max_lifetime if policy.spec.secret_keys else None
    if new.kind is KeyKind.PUBLISHABLE:
        longest = None
    if new.expire_time is None:
        return now + longest if longest else None
    if new.expire_time <= now:
        raise InvalidRequest.at("api_key.expire_time", "EXPIRE_TIME_PAST", "lies in the past")
    if longest and new.expire_time > now + longest:
        raise InvalidRequest.at(
            "api_key.expire_time", "EXPIRE_TIME_TOO_FAR", f"keys of this product live at most {longest}"
        )
    return new.expire_time


async def _owner(connection: Connection, tenant: Tenant, policy: Policy, new: NewApiKey) -> Principal | None:
    if new.owner is None:
        return None
    if isinstance(new.owner, NewMachineUser):
        people.lifetime(policy)
        return await people.insert_machine_user(connection, tenant, new.owner.name, new.owner.display_name)
    return await lookup.principal(connection, tenant, new.owner)


def new_uid(now: datetime) -> uuid.UUID:
    """Make the uid of a key that is created now."""
    return new_key_uid(int(now.timestamp() * 1000), secrets.randbits(74))
