"""Members and machine users: adding, reading, listing and removing them."""

from gatekey_server.commands import lookup
from gatekey_server.commands.callers import Caller
from gatekey_server.commands.paging import Page
from gatekey_server.domain.decisions import Policy, PrincipalKind
from gatekey_server.domain.entities import Principal, Tenant
from gatekey_server.domain.errors import AlreadyExists, FailedPrecondition, InvalidRequest
from gatekey_server.domain.names import MachineUserName, MemberName, PrincipalName, ProductName, TenantName
from gatekey_server.domain.specs import Lifetime
from gatekey_server.store import principals
from gatekey_server.store.database import Connection, Database


async def add_member(
    database: Database, caller: Caller, name: MemberName, *, role: str, display_name: str
) -> Principal:
    """Add a person to a tenant.

    Raises `InvalidRequest` (`ROLE_UNKNOWN`), `AlreadyExists` (`MEMBER_EXISTS`), and as `lookup.tenant_for_change`.
    """
    caller.require((*name.parent.path, "members"), "create")

    async def work(connection: Connection) -> Principal:
        product, tenant = await lookup.tenant_for_change(connection, name.parent)
        roles = [known.role for known in product.policy.spec.roles]
        if role not in roles:
            raise InvalidRequest.at("member.role", "ROLE_UNKNOWN", f"one of {', '.join(roles)} is required")
        member = await principals.insert(connection, tenant, name, role=role, display_name=display_name)
        if member is None:
            raise AlreadyExists("MEMBER_EXISTS", f"there is a member `{name}`")
        return member

    return await database.transaction(work)


async def create_machine_user(
    database: Database, caller: Caller, name: MachineUserName, display_name: str
) -> tuple[Principal, Policy]:
    """Create a machine user that has no keys yet. Answers with the policy that gives its role.

    Raises `FailedPrecondition` (`MACHINE_USERS_NOT_OFFERED`, `MACHINE_USER_NEEDS_KEY`),
    `AlreadyExists` (`MACHINE_USER_EXISTS`), and as `lookup.tenant_for_change`.
    """
    caller.require((*name.parent.path, "machineUsers"), "create")

    async def work(connection: Connection) -> tuple[Principal, Policy]:
        product, tenant = await lookup.tenant_for_change(connection, name.parent)
        if lifetime(product.policy) is Lifetime.BOUND_TO_KEYS:
            raise FailedPrecondition(
                "MACHINE_USER_NEEDS_KEY",
                "machine users of this product live as long as their keys: create one with its first key",
            )
        return await insert_machine_user(connection, tenant, name, display_name), product.policy

    return await database.transaction(work)


async def insert_machine_user(
    connection: Connection, tenant: Tenant, name: MachineUserName, display_name: str
) -> Principal:
    """Create a machine user in a locked tenant. Raises `AlreadyExists` (`MACHINE_USER_EXISTS`)."""
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


async def get_person(database: Database, caller: Caller, name: PrincipalName) -> tuple[Principal, Policy]:
    """Read a member or a machine user, with the policy that gives machine users their role.

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


async def remove_person(database: Database, caller: Caller, name: PrincipalName) -> None:
    """Remove a member or a machine user with all their keys.

    Raises `NotFound` (`MEMBER_NOT_FOUND`, `MACHINE_USER_NOT_FOUND`), and as `lookup.tenant_for_change`.
    """
    caller.require(name.path, "delete")

    async def work(connection: Connection) -> None:
        _, tenant = await lookup.tenant_for_change(connection, name.parent)
        if not await principals.delete(connection, tenant, name):
            raise lookup.principal_not_found(name)

    await database.transaction(work)


def _uid(principal: Principal) -> int:
    return principal.uid
