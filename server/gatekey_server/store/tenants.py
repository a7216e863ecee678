"""Tenants, and purging what a deleted one holds."""

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
from gatekey.core.entities import Deleted, Tenant
from gatekey.core.names import ProductName, TenantName

from gatekey_server.store.database import Connection, Database
from gatekey_server.store.queries import queries
from gatekey_server.store.slices import Slice

PURGE_BATCH_ROWS = 1000


async def get(connection: Connection, name: TenantName) -> Tenant | None:
    """Return a tenant, deleted or not."""
    return _tenant(await queries.tenant_get(connection, product_id=name.product, tenant_id=name.tenant))


async def lock(connection: Connection, name: TenantName) -> Tenant | None:
    """Return a tenant, and lock it against other mutations inside it until the end of the transaction."""
    return _tenant(await queries.tenant_lock(connection, product_id=name.product, tenant_id=name.tenant))


async def page(
    connection: Connection, product: ProductName, after: int, limit: int, *, show_deleted: bool
) -> Slice[Tenant, int]:
    """Return up to `limit` tenants of a product, after the uid `after`."""
    rows = queries.tenant_list(connection, product_id=product.product, after=after, limit=limit)
    found = Slice.of([_to_tenant(row) async for row in rows], limit, lambda tenant: tenant.uid)
    return found if show_deleted else Slice([t for t in found.items if t.delete_time is None], found.last)


async def insert(connection: Connection, name: TenantName, display_name: str) -> Tenant | None:
    """Create a tenant. Returns None where the id is taken."""
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
    """Mark a locked tenant as deleted, to be purged after the retention."""
    row = await queries.tenant_mark_deleted(connection, tenant_uid=tenant.uid, retention=retention)
    return _to_tenant(row)


async def undelete(connection: Connection, tenant: Tenant) -> Tenant | None:
    """Undelete a locked tenant. Returns None where its purge may have begun."""
    return _tenant(await queries.tenant_undelete(connection, tenant_uid=tenant.uid))


async def count(connection: Connection, product: ProductName, limit: int) -> int:
    """Count the tenants of a product, deleted ones included, as far as `limit`."""
    return int(await queries.tenant_count(connection, product_id=product.product, limit=limit))


async def next_of_deleted(database: Database, product: ProductName) -> Tenant | None:
    """Return a tenant of a deleted product that is not purged yet."""
    async with database.connection() as connection:
        return _tenant(await queries.tenant_next_of_deleted_product(connection, product_id=product.product))


async def count_contents_of_all(connection: Connection, product: ProductName, limit: int) -> Deleted:
    """Count the tenants of a product and what they hold, each as far as `limit`."""
    row = await queries.product_count_contents(connection, product_id=product.product, limit=limit)
    return Deleted(row["tenants"], row["members"], row["machine_users"], min(row["api_keys"], limit))


async def next_due(database: Database, but: Sequence[int] = ()) -> Tenant | None:
    """Return a deleted tenant whose retention is over, and whose uid is not in `but`."""
    async with database.connection() as connection:
        return _tenant(await queries.tenant_next_due(connection, but=but))


async def purge_contents(database: Database, tenant: Tenant) -> AsyncGenerator[float, None]:
    """Delete everything in a deleted tenant, in transactions of bounded size. Yields the seconds that each took.

    None of it has been in force since the deletion, so no cache is invalidated. It may be interrupted and repeated, and
    run several times at once.
    """
    for remove, first in ((queries.tenant_purge_keys, uuid.UUID(int=0)), (queries.tenant_purge_principals, 0)):
        after: object = first
        while after is not None:
            began = time.monotonic()
            after = await database.transaction(partial(_purge_some, tenant=tenant, remove=remove, after=after))
            yield time.monotonic() - began


async def _purge_some(connection: Connection, *, tenant: Tenant, remove: Any, after: object) -> object:
    await queries.purge_begin(connection)
    return await remove(connection, tenant_uid=tenant.uid, after=after, limit=PURGE_BATCH_ROWS)


async def purge(connection: Connection, tenant: Tenant) -> None:
    """Delete the row of a deleted tenant that holds nothing."""
    await queries.tenant_purge(connection, tenant_uid=tenant.uid)


async def purge_of_deleted(connection: Connection, *, tenant: Tenant) -> None:
    """Do the same for a tenant of a deleted product, without invalidating caches."""
    await queries.purge_begin(connection)
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
