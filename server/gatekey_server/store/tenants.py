"""Tenants, and the purge of what was below a deleted one."""

from datetime import timedelta

import asyncpg

from gatekey_server.domain.entities import Deleted, Tenant
from gatekey_server.domain.names import ProductName, TenantName
from gatekey_server.store.database import Connection, Database
from gatekey_server.store.queries import queries

PURGE_BATCH_ROWS = 1000


async def get(connection: Connection, name: TenantName) -> Tenant | None:
    """Read a tenant, deleted or not."""
    return _tenant(await queries.tenant_get(connection, product_id=name.product, tenant_id=name.tenant))


async def lock(connection: Connection, name: TenantName) -> Tenant | None:
    """Read a tenant and keep every other mutation inside it waiting until the end of the transaction."""
    return _tenant(await queries.tenant_lock(connection, product_id=name.product, tenant_id=name.tenant))


async def page(
    connection: Connection, product: ProductName, after: int, limit: int, *, show_deleted: bool
) -> list[Tenant]:
    """Read up to `limit` tenants of a product, from the one after the uid `after`."""
    rows = queries.tenant_list(
        connection, product_id=product.product, after=after, limit=limit, show_deleted=show_deleted
    )
    return [_to_tenant(row) async for row in rows]


async def insert(connection: Connection, name: TenantName, display_name: str) -> Tenant | None:
    """Create a tenant; None where the id is taken."""
    row = await queries.tenant_insert(
        connection, product_id=name.product, tenant_id=name.tenant, display_name=display_name
    )
    return _tenant(row)


async def update(connection: Connection, tenant: Tenant, display_name: str) -> Tenant:
    """Change a locked tenant."""
    return _to_tenant(await queries.tenant_update(connection, tenant_uid=tenant.uid, display_name=display_name))


async def suspend(connection: Connection, tenant: Tenant) -> Tenant:
    """Suspend a locked tenant."""
    return _to_tenant(await queries.tenant_suspend(connection, tenant_uid=tenant.uid))


async def resume(connection: Connection, tenant: Tenant) -> Tenant:
    """End the suspension of a locked tenant."""
    return _to_tenant(await queries.tenant_resume(connection, tenant_uid=tenant.uid))


async def mark_deleted(connection: Connection, tenant: Tenant, retention: timedelta) -> Tenant:
    """Make a locked tenant a deleted one, to be purged after the retention period."""
    row = await queries.tenant_mark_deleted(connection, tenant_uid=tenant.uid, retention=retention)
    return _to_tenant(row)


async def undelete(connection: Connection, tenant: Tenant) -> Tenant | None:
    """Take back the deletion of a locked tenant; None where it may be being purged already."""
    return _tenant(await queries.tenant_undelete(connection, tenant_uid=tenant.uid))


async def count_contents(connection: Connection, tenant: Tenant) -> Deleted:
    """Count what would go with a tenant, and the tenant itself."""
    row = await queries.tenant_count_contents(connection, tenant_uid=tenant.uid)
    return Deleted(1, row["members"], row["machine_users"], row["api_keys"])


async def mark_all_deleted(connection: Connection, product: ProductName) -> None:
    """Make all tenants of a product deleted ones."""
    await queries.tenant_mark_all_deleted(connection, product_id=product.product)


async def count(connection: Connection, product: ProductName) -> int:
    """Count the tenants of a product, deleted ones included."""
    return int(await queries.tenant_count(connection, product_id=product.product))


async def next_deleted(connection: Connection, product: ProductName) -> Tenant | None:
    """A deleted tenant that has not been purged yet."""
    return _tenant(await queries.tenant_next_deleted(connection, product_id=product.product))


async def count_contents_of_all(connection: Connection, product: ProductName) -> Deleted:
    """Count the tenants of a product and what they hold."""
    row = await queries.product_count_contents(connection, product_id=product.product)
    return Deleted(row["tenants"], row["members"], row["machine_users"], row["api_keys"])


async def next_due(database: Database) -> Tenant | None:
    """A deleted tenant whose retention period is over."""
    async with database.connection() as connection:
        return _tenant(await queries.tenant_next_due(connection))


async def purge_contents(database: Database, tenant: Tenant) -> None:
    """Remove everything below a deleted tenant, in transactions of bounded size.

    May be interrupted and called again.
    """
    for remove in (queries.tenant_purge_keys, queries.tenant_purge_principals):
        removed = PURGE_BATCH_ROWS
        while removed == PURGE_BATCH_ROWS:
            async with database.connection() as connection:
                removed = int(await remove(connection, tenant_uid=tenant.uid, limit=PURGE_BATCH_ROWS))


async def purge(connection: Connection, tenant: Tenant) -> None:
    """Remove a deleted tenant with nothing below it."""
    await queries.tenant_purge(connection, tenant_uid=tenant.uid)


def _tenant(row: asyncpg.Record | None) -> Tenant | None:
    return None if row is None else _to_tenant(row)


def _to_tenant(row: asyncpg.Record) -> Tenant:
    return Tenant(
        uid=row["tenant_uid"],
        name=TenantName(row["product_id"], row["tenant_id"]),
        display_name=row["display_name"],
        create_time=row["create_time"],
        suspend_time=row["suspend_time"],
        delete_time=row["delete_time"],
        purge_time=row["purge_time"],
        version=row["version"],
    )
