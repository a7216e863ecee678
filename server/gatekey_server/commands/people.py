"""The lives of members and machine users."""

from gatekey_server.commands import actors, limits, lookup
from gatekey_server.commands.callers import Caller
from gatekey_server.commands.mutations import Change, Mutation, check_etag, run
from gatekey_server.commands.paging import Page
from gatekey_server.domain.audit import describe
from gatekey_server.domain.decisions import Policy, PrincipalKind
from gatekey_server.domain.entities import Deleted, Principal, Product, Tenant
from gatekey_server.domain.errors import AlreadyExists, FailedPrecondition, InvalidRequest
from gatekey_server.domain.names import MachineUserName, MemberName, PrincipalName, ProductName, TenantName
from gatekey_server.domain.specs import Lifetime
from gatekey_server.store import principals
from gatekey_server.store.database import Connection, Database

Person = tuple[Principal, Policy]
"""A principal, and the policy that gives machine users their role."""


async def add_member(
    database: Database, mutation: Mutation[Principal], name: MemberName, *, role: str, display_name: str
) -> Principal:
    """Add a person to a tenant.

    Raises `InvalidRequest` (`ROLE_UNKNOWN`), `AlreadyExists` (`MEMBER_EXISTS`), `ResourceExhausted`
    (`LIMIT_REACHED`), and as `lookup.tenant_for_change` and `actors.authorise`.
    """
    mutation.caller.require((*name.parent.path, "members"), "create")

    async def work(connection: Connection) -> Change[Principal]:
        product, tenant = await lookup.tenant_for_change(connection, name.parent)
        actor = await actors.authorise(connection, mutation, product.policy, tenant, "members", "create")
        _refuse_unknown_role(product.policy, role)
        actor.may_give_role(role)
        await limits.refuse_another_principal(connection, product, tenant, PrincipalKind.MEMBER)
        member = await principals.insert(connection, tenant, name, role=role, display_name=display_name)
        if member is None:
            raise AlreadyExists("MEMBER_EXISTS", f"there is a member `{name}`")
        return Change(member, name, None, describe(member))

    return await run(database, mutation, work)


async def create_machine_user(
    database: Database, mutation: Mutation[Person], name: MachineUserName, display_name: str
) -> Person:
    """Create a machine user that has no keys yet.

    Raises `FailedPrecondition` (`MACHINE_USERS_NOT_OFFERED`, `MACHINE_USER_NEEDS_KEY`), `AlreadyExists`
    (`MACHINE_USER_EXISTS`), `ResourceExhausted` (`LIMIT_REACHED`), and as `lookup.tenant_for_change`
    and `actors.authorise`.
    """
    mutation.caller.require((*name.parent.path, "machineUsers"), "create")

    async def work(connection: Connection) -> Change[Person]:
        product, tenant = await lookup.tenant_for_change(connection, name.parent)
        actor = await actors.authorise(connection, mutation, product.policy, tenant, "machineUsers", "create")
        if lifetime(product.policy) is Lifetime.BOUND_TO_KEYS:
            raise FailedPrecondition(
                "MACHINE_USER_NEEDS_KEY",
                "machine users of this product live as long as their keys: create one with its first key",
            )
        actor.may_give_role(product.policy.machine_user_role)
        user = await insert_machine_user(connection, product, tenant, name, display_name)
        return Change((user, product.policy), name, None, describe(user))

    return await run(database, mutation, work)


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


def lifetime(policy: Policy) -> Lifetime:
    """How long machine users live. Raises `FailedPrecondition` (`MACHINE_USERS_NOT_OFFERED`)."""
    offered = policy.spec.machine_users
    if offered is None or offered.lifetime is None:
        raise FailedPrecondition("MACHINE_USERS_NOT_OFFERED", "this product has no machine users")
    return offered.lifetime


async def get_person(database: Database, caller: Caller, name: PrincipalName) -> Person:
    """Read a member or a machine user.

    Raises `NotFound` (`PRODUCT_NOT_FOUND`, `TENANT_NOT_FOUND`, `MEMBER_NOT_FOUND`, `MACHINE_USER_NOT_FOUND`).
    """
    caller.require(name.path, "get")
    async with database.connection() as connection:
        product = await lookup.product(connection, ProductName(name.parent.product))
        tenant = await lookup.tenant(connection, name.parent)
        return await lookup.principal(connection, tenant, name), product.policy


async def list_people(
    database: Database, caller: Caller, parent: TenantName, after: int, size: int
) -> tuple[Page[Principal], Policy, int]:
    """List members and machine users together; answers the number of users as well.

    Raises `NotFound` (`PRODUCT_NOT_FOUND`, `TENANT_NOT_FOUND`).
    """
    caller.require((*parent.path, "members"), "list")
    async with database.connection() as connection:
        product = await lookup.product(connection, ProductName(parent.product))
        tenant = await lookup.tenant(connection, parent)
        found = await principals.page(connection, tenant, after, size + 1)
        users = await principals.count_members(connection, tenant)
    return Page.of(found, size, _uid), product.policy, users


async def list_machine_users(
    database: Database, caller: Caller, parent: TenantName, after: int, size: int
) -> tuple[Page[Principal], Policy]:
    """List the machine users of a tenant. Raises `NotFound` (`PRODUCT_NOT_FOUND`, `TENANT_NOT_FOUND`)."""
    caller.require((*parent.path, "machineUsers"), "list")
    async with database.connection() as connection:
        product = await lookup.product(connection, ProductName(parent.product))
        tenant = await lookup.tenant(connection, parent)
        found = await principals.page(connection, tenant, after, size + 1, PrincipalKind.MACHINE_USER)
    return Page.of(found, size, _uid), product.policy


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
    """Change what is not None of a member; a role counts for their keys at the next check.

    Raises `InvalidRequest` (`ROLE_UNKNOWN`), `Aborted` (`ETAG_MISMATCH`), `FailedPrecondition`
    (`LAST_OWNER`), `NotFound` (`MEMBER_NOT_FOUND`), and as `lookup.tenant_for_change` and `actors.authorise`.
    """
    mutation.caller.require(name.path, "update")

    async def work(connection: Connection) -> Change[Principal]:
        product, tenant = await lookup.tenant_for_change(connection, name.parent)
        actor = await actors.authorise(connection, mutation, product.policy, tenant, "members", "update")
        before = await lookup.principal(connection, tenant, name)
        check_etag(etag, before.etag)
        new_role = before.role
        if role is not None and role != before.role:
            _refuse_unknown_role(product.policy, role)
            actor.may_give_role(role)
            if not force and not product.policy.is_owner(role):
                await _refuse_last_owner(connection, product.policy, tenant, before)
            new_role = role
        new_name = before.display_name if display_name is None else display_name
        if (new_role, new_name) == (before.role, before.display_name):
            return Change(before, name, None, None)
        after = await principals.update(connection, tenant, before, role=new_role, display_name=new_name)
        return Change(after, name, describe(before), describe(after))

    return await run(database, mutation, work)


async def update_machine_user(
    database: Database, mutation: Mutation[Person], name: MachineUserName, etag: str, *, display_name: str | None
) -> Person:
    """Change what is not None of a machine user.

    Raises `Aborted` (`ETAG_MISMATCH`), `NotFound` (`MACHINE_USER_NOT_FOUND`), and as
    `lookup.tenant_for_change` and `actors.authorise`.
    """
    mutation.caller.require(name.path, "update")

    async def work(connection: Connection) -> Change[Person]:
        product, tenant = await lookup.tenant_for_change(connection, name.parent)
        await actors.authorise(connection, mutation, product.policy, tenant, "machineUsers", "update")
        before = await lookup.principal(connection, tenant, name)
        check_etag(etag, before.etag)
        if display_name is None or display_name == before.display_name:
            return Change((before, product.policy), name, None, None)
        after = await principals.update(connection, tenant, before, role=None, display_name=display_name)
        return Change((after, product.policy), name, describe(before), describe(after))

    return await run(database, mutation, work)


async def remove_person(
    database: Database, mutation: Mutation[Deleted], name: PrincipalName, etag: str, *, force: bool = False
) -> Deleted:
    """Remove a member or a machine user with all their keys.

    Raises `Aborted` (`ETAG_MISMATCH`), `FailedPrecondition` (`LAST_OWNER`), `NotFound`
    (`MEMBER_NOT_FOUND`, `MACHINE_USER_NOT_FOUND`), and as `lookup.tenant_for_change` and `actors.authorise`.
    """
    mutation.caller.require(name.path, "delete")
    machine = isinstance(name, MachineUserName)

    async def work(connection: Connection) -> Change[Deleted]:
        product, tenant = await lookup.tenant_for_change(connection, name.parent)
        collection = "machineUsers" if machine else "members"
        await actors.authorise(connection, mutation, product.policy, tenant, collection, "delete")
        before = await lookup.principal(connection, tenant, name)
        check_etag(etag, before.etag)
        if not force:
            await _refuse_last_owner(connection, product.policy, tenant, before)
        keys = await principals.count_keys(connection, tenant, before)
        await principals.delete(connection, tenant, name)
        deleted = Deleted(members=int(not machine), machine_users=int(machine), api_keys=keys)
        return Change(deleted, name, describe(before), None)

    return await run(database, mutation, work)


def _refuse_unknown_role(policy: Policy, role: str) -> None:
    roles = [known.role for known in policy.spec.roles]
    if role not in roles:
        raise InvalidRequest.at("member.role", "ROLE_UNKNOWN", f"one of {', '.join(roles)} is required")


async def _refuse_last_owner(connection: Connection, policy: Policy, tenant: Tenant, member: Principal) -> None:
    if member.role is None or not policy.is_owner(member.role):
        return
    if await principals.count_with_role(connection, tenant, member.role) == 1:
        raise FailedPrecondition("LAST_OWNER", f"`{member.name}` is the last {member.role} of the tenant")


def _uid(principal: Principal) -> int:
    return principal.uid
