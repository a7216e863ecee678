"""Adding, reading, changing and removing members and machine users."""

from collections.abc import Callable

from gatekey.core import key_rules
from gatekey.core.audit import describe, describe_removed
from gatekey.core.decisions import CompiledSpec, PrincipalKind
from gatekey.core.entities import Deleted, Principal, Product, Tenant
from gatekey.core.errors import AlreadyExists, FailedPrecondition
from gatekey.core.names import MachineUserName, MemberName, PrincipalName, ProductName, TenantName

from gatekey_server.authorization import actors
from gatekey_server.authorization.callers import Caller
from gatekey_server.commands import limits, lookup
from gatekey_server.commands.mutations import Mutation, MutationOutcome, check_etag, run
from gatekey_server.commands.paging import Taker, fill
from gatekey_server.store import principals
from gatekey_server.store.database import Connection, Database
from gatekey_server.store.slices import Slice

SLICE_ROWS = 100

MAX_NAMED_KEYS = 100
"""How many of the keys that are removed with a principal the audit event names."""

PrincipalAndSpec = tuple[Principal, CompiledSpec]
"""A principal, and the compiled spec, which sets the role of machine users."""


async def add_member(
    database: Database, mutation: Mutation[Principal], name: MemberName, *, role: str, display_name: str
) -> Principal:
    """Add a member to a tenant.

    Raises `InvalidRequest` (`ROLE_UNKNOWN`), `AlreadyExists` (`MEMBER_EXISTS`), `ResourceExhausted`
    (`LIMIT_REACHED`), and as `lookup.tenant_for_change` and `actors.authorise`.
    """
    mutation.require((*name.parent.path, "members"), "create")

    async def work(connection: Connection) -> MutationOutcome[Principal]:
        product, tenant = await lookup.tenant_for_change(connection, name.parent)
        actor = await actors.authorise(connection, mutation, product.compiled, tenant, "members", "create")
        key_rules.check_role(product.compiled, role)
        actor.may_give_role(role)
        await limits.refuse_another_principal(connection, product, tenant, PrincipalKind.MEMBER)
        member = await principals.insert(connection, tenant, name, role=role, display_name=display_name)
        if member is None:
            raise AlreadyExists("MEMBER_EXISTS", f"there is a member `{name}`")
        return MutationOutcome(member, name, None, describe(member))

    return await run(database, mutation, name.parent, work)


async def create_machine_user(
    database: Database, mutation: Mutation[PrincipalAndSpec], name: MachineUserName, display_name: str
) -> PrincipalAndSpec:
    """Create a machine user without keys.

    Raises `FailedPrecondition` (`MACHINE_USERS_NOT_OFFERED`, `MACHINE_USER_NEEDS_KEY`), `AlreadyExists`
    (`MACHINE_USER_EXISTS`), `ResourceExhausted` (`LIMIT_REACHED`), and as `lookup.tenant_for_change`
    and `actors.authorise`.
    """
    mutation.require((*name.parent.path, "machineUsers"), "create")

    async def work(connection: Connection) -> MutationOutcome[PrincipalAndSpec]:
        product, tenant = await lookup.tenant_for_change(connection, name.parent)
        actor = await actors.authorise(connection, mutation, product.compiled, tenant, "machineUsers", "create")
        key_rules.check_keyless_machine_user(product.compiled)
        actor.may_create_machine_users()
        user = await insert_machine_user(connection, product, tenant, name, display_name)
        return MutationOutcome((user, product.compiled), name, None, describe(user))

    return await run(database, mutation, name.parent, work)


async def insert_machine_user(
    connection: Connection, product: Product, tenant: Tenant, name: MachineUserName, display_name: str
) -> Principal:
    """Create a machine user in a locked tenant.

    Raises `AlreadyExists` (`MACHINE_USER_EXISTS`) and `ResourceExhausted` (`LIMIT_REACHED`).
    """
    await limits.refuse_another_principal(connection, product, tenant, PrincipalKind.MACHINE_USER)
    user = await principals.insert(connection, tenant, name, role=None, display_name=display_name)
    if user is None:
        raise AlreadyExists("MACHINE_USER_EXISTS", f"there is a machine user `{name}`")
    return user


async def get_principal(database: Database, caller: Caller, name: PrincipalName) -> PrincipalAndSpec:
    """Return a member or a machine user.

    Raises `NotFound` (`PRODUCT_NOT_FOUND`, `TENANT_NOT_FOUND`, `MEMBER_NOT_FOUND`, `MACHINE_USER_NOT_FOUND`).
    """
    caller.require(name.path, "get")
    async with database.connection() as connection:
        product = await lookup.product(connection, ProductName(name.parent.product))
        tenant = await lookup.tenant(connection, name.parent)
        return await lookup.principal(connection, tenant, name), product.compiled


async def list_principals(
    database: Database, caller: Caller, parent: TenantName, after: int, page: Callable[[CompiledSpec], Taker[Principal]]
) -> tuple[str | None, int]:
    """List members and machine users together. Returns the next cursor, and the number of members.

    Raises `NotFound` (`PRODUCT_NOT_FOUND`, `TENANT_NOT_FOUND`).
    """
    caller.require((*parent.path, "members"), "list")
    async with database.connection() as connection:
        product = await lookup.product(connection, ProductName(parent.product))
        tenant = await lookup.tenant(connection, parent)
        following = await _list(connection, tenant, after, page(product.compiled))
        users = await principals.count_up_to(connection, tenant, PrincipalKind.MEMBER, limits.MAX_COUNTED)
    return following, users


async def list_machine_users(
    database: Database, caller: Caller, parent: TenantName, after: int, page: Callable[[CompiledSpec], Taker[Principal]]
) -> str | None:
    """List the machine users of a tenant. Returns the next cursor.

    Raises `NotFound` (`PRODUCT_NOT_FOUND`, `TENANT_NOT_FOUND`).
    """
    caller.require((*parent.path, "machineUsers"), "list")
    async with database.connection() as connection:
        product = await lookup.product(connection, ProductName(parent.product))
        tenant = await lookup.tenant(connection, parent)
        return await _list(connection, tenant, after, page(product.compiled), PrincipalKind.MACHINE_USER)


async def _list(
    connection: Connection,
    tenant: Tenant,
    after: int,
    page: Taker[Principal],
    kind: PrincipalKind | None = None,
) -> str | None:
    async def read(after: int, limit: int) -> Slice[Principal, int]:
        return Slice.of(await principals.page(connection, tenant, after, limit, kind), limit, _uid)

    return await fill(page, read, after, _uid, SLICE_ROWS)


async def update_member(
    database: Database,
    mutation: Mutation[Principal],
    name: MemberName,
    etag: str,
    *,
    role: str | None,
    display_name: str | None,
    force: bool,
) -> Principal:
    """Change the arguments that are not None of a member. A new role applies to their keys at the next check.

    Raises `InvalidRequest` (`ROLE_UNKNOWN`), `Aborted` (`ETAG_MISMATCH`), `FailedPrecondition`
    (`LAST_OWNER`), `NotFound` (`MEMBER_NOT_FOUND`), and as `lookup.tenant_for_change` and `actors.authorise`.
    """
    mutation.require(name.path, "update")

    async def work(connection: Connection) -> MutationOutcome[Principal]:
        product, tenant = await lookup.tenant_for_change(connection, name.parent)
        actor = await actors.authorise(connection, mutation, product.compiled, tenant, "members", "update")
        before = await lookup.principal(connection, tenant, name)
        check_etag(etag, before.etag)
        new_role = before.role
        if role is not None and role != before.role:
            key_rules.check_role(product.compiled, role)
            actor.may_give_role(role)
            if not force and not product.compiled.is_owner(role):
                await _refuse_last_owner(connection, product.compiled, tenant, before)
            new_role = role
        new_name = before.display_name if display_name is None else display_name
        if (new_role, new_name) == (before.role, before.display_name):
            return MutationOutcome(before, name, None, None)
        after = await principals.update(connection, tenant, before, role=new_role, display_name=new_name)
        return MutationOutcome(after, name, describe(before), describe(after))

    return await run(database, mutation, name.parent, work)


async def update_machine_user(
    database: Database,
    mutation: Mutation[PrincipalAndSpec],
    name: MachineUserName,
    etag: str,
    *,
    display_name: str | None,
) -> PrincipalAndSpec:
    """Change the arguments that are not None of a machine user.

    Raises `Aborted` (`ETAG_MISMATCH`), `NotFound` (`MACHINE_USER_NOT_FOUND`), and as
    `lookup.tenant_for_change` and `actors.authorise`.
    """
    mutation.require(name.path, "update")

    async def work(connection: Connection) -> MutationOutcome[PrincipalAndSpec]:
        product, tenant = await lookup.tenant_for_change(connection, name.parent)
        await actors.authorise(connection, mutation, product.compiled, tenant, "machineUsers", "update")
        before = await lookup.principal(connection, tenant, name)
        check_etag(etag, before.etag)
        if display_name is None or display_name == before.display_name:
            return MutationOutcome((before, product.compiled), name, None, None)
        after = await principals.update(connection, tenant, before, role=None, display_name=display_name)
        return MutationOutcome((after, product.compiled), name, describe(before), describe(after))

    return await run(database, mutation, name.parent, work)


async def remove_principal(
    database: Database, mutation: Mutation[Deleted], name: PrincipalName, etag: str, *, force: bool = False
) -> Deleted:
    """Remove a member or a machine user with all their keys, which are unknown from then on.

    A member can leave: be removed on their own behalf. The time does not depend on the number of keys: their
    rows are purged later. Keys are counted as far as `limits.MAX_COUNTED`.

    Raises `Aborted` (`ETAG_MISMATCH`), `FailedPrecondition` (`LAST_OWNER`), `NotFound`
    (`MEMBER_NOT_FOUND`, `MACHINE_USER_NOT_FOUND`), and as `lookup.tenant_for_change` and `actors.authorise`.
    """
    mutation.require(name.path, "delete")
    machine = isinstance(name, MachineUserName)

    async def work(connection: Connection) -> MutationOutcome[Deleted]:
        product, tenant = await lookup.tenant_for_change(connection, name.parent)
        # A member may leave, whatever their role may administer.
        leaves = not machine and mutation.actor == name
        if leaves:
            await actors.find(connection, mutation, product.compiled, tenant)
        else:
            collection = "machineUsers" if machine else "members"
            await actors.authorise(connection, mutation, product.compiled, tenant, collection, "delete")
        before = await lookup.principal(connection, tenant, name)
        check_etag(etag, before.etag)
        if leaves or not force:
            await _refuse_last_owner(connection, product.compiled, tenant, before)
        keys = await principals.count_keys(connection, tenant, before, limits.MAX_COUNTED)
        named = await principals.key_ids(connection, tenant, before, MAX_NAMED_KEYS)
        await principals.remove(connection, tenant, before)
        deleted = Deleted(members=int(not machine), machine_users=int(machine), api_keys=keys)
        return MutationOutcome(deleted, name, describe_removed(before, keys, named), None)

    return await run(database, mutation, name.parent, work)


async def _refuse_last_owner(connection: Connection, compiled: CompiledSpec, tenant: Tenant, member: Principal) -> None:
    if member.role is None or not compiled.is_owner(member.role):
        return
    if await principals.count_with_role(connection, tenant, member.role, 2) == 1:
        raise FailedPrecondition(
            "LAST_OWNER", f"`{member.name}` is the last {member.role} of the {compiled.tenant_noun}"
        )


def _uid(principal: Principal) -> int:
    return principal.uid
