"""Members and machine users."""

import asyncpg

from gatekey_server.domain.decisions import PrincipalKind
from gatekey_server.domain.entities import Principal, Tenant
from gatekey_server.domain.names import MachineUserName, MemberName, PrincipalName, TenantName
from gatekey_server.store.database import Connection
from gatekey_server.store.queries import queries


def principal_name(tenant: TenantName, kind: str, principal_id: str) -> PrincipalName:
    """The resource name of a principal."""
    if kind == PrincipalKind.MACHINE_USER:
        return MachineUserName(tenant, principal_id)
    return MemberName(tenant, principal_id)


async def get(connection: Connection, tenant: Tenant, name: PrincipalName) -> Principal | None:
    """Read a principal of the tenant."""
    row = await queries.principal_get(connection, tenant_uid=tenant.uid, **_identity(name))
    return None if row is None else _to_principal(tenant, row)


async def insert(
    connection: Connection, tenant: Tenant, name: PrincipalName, *, role: str | None, display_name: str
) -> Principal | None:
    """Add a principal to the tenant; None where the id is taken. Machine users have no role of their own."""
    row = await queries.principal_insert(
        connection, tenant_uid=tenant.uid, **_identity(name), role=role, display_name=display_name
    )
    return None if row is None else _to_principal(tenant, row)


async def page(
    connection: Connection, tenant: Tenant, after: int, limit: int, kind: PrincipalKind | None = None
) -> list[Principal]:
    """Read up to `limit` principals, of one kind or of both, from the one after the uid `after`."""
    if kind is None:
        rows = queries.principal_list(connection, tenant_uid=tenant.uid, after=after, limit=limit)
    else:
        rows = queries.principal_list_by_kind(connection, tenant_uid=tenant.uid, kind=kind, after=after, limit=limit)
    return [_to_principal(tenant, row) async for row in rows]


async def count_members(connection: Connection, tenant: Tenant) -> int:
    """Count the tenant's users."""
    return int(await queries.member_count(connection, tenant_uid=tenant.uid))


async def delete(connection: Connection, tenant: Tenant, name: PrincipalName) -> bool:
    """Remove a principal with its keys; False where there is none."""
    uid = await queries.principal_delete(connection, tenant_uid=tenant.uid, **_identity(name))
    return uid is not None


async def delete_if_keyless(connection: Connection, tenant: Tenant, principal_uid: int) -> bool:
    """Remove a machine user that has no key left; nothing happens to any other principal."""
    uid = await queries.principal_delete_if_keyless(connection, tenant_uid=tenant.uid, principal_uid=principal_uid)
    return uid is not None


async def update(
    connection: Connection, tenant: Tenant, principal: Principal, *, role: str | None, display_name: str
) -> Principal:
    """Change a principal of a locked tenant."""
    row = await queries.principal_update(
        connection, tenant_uid=tenant.uid, principal_uid=principal.uid, role=role, display_name=display_name
    )
    return _to_principal(tenant, row)


async def count_up_to(connection: Connection, tenant: Tenant, kind: PrincipalKind, limit: int) -> int:
    """Count the principals of a kind, as far as `limit`."""
    count = await queries.principal_count_up_to(connection, tenant_uid=tenant.uid, kind=kind, limit=limit)
    return int(count)


async def count_with_role(connection: Connection, tenant: Tenant, role: str) -> int:
    """Count the members that have a role."""
    return int(await queries.member_count_with_role(connection, tenant_uid=tenant.uid, role=role))


async def count_keys(connection: Connection, tenant: Tenant, principal: Principal) -> int:
    """Count the keys that go with a principal."""
    count = await queries.principal_count_keys(connection, tenant_uid=tenant.uid, principal_uid=principal.uid)
    return int(count)


def _identity(name: PrincipalName) -> dict[str, str]:
    if isinstance(name, MachineUserName):
        return {"kind": PrincipalKind.MACHINE_USER, "principal_id": name.machine_user}
    return {"kind": PrincipalKind.MEMBER, "principal_id": name.member}


def _to_principal(tenant: Tenant, row: asyncpg.Record) -> Principal:
    return Principal(
        uid=row["principal_uid"],
        name=principal_name(tenant.name, row["kind"], row["principal_id"]),
        role=row["role"],
        display_name=row["display_name"],
        create_time=row["create_time"],
        version=row["version"],
    )
