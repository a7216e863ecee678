"""Purging what has expired: the rows of removed principals, deleted tenants and products; ended keys; past secrets;
responses kept for repetitions; old changes.

It works in transactions of bounded size, with pauses between them. Several servers may do it at once.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

import structlog
from gatekey.core import builtin
from gatekey.core.audit import Description, describe
from gatekey.core.entities import Tenant
from gatekey.core.errors import FailedPrecondition, NotFound, Overloaded, Unavailable
from gatekey.core.names import ApiKeyName, ProductName, parse_key_id
from gatekey.core.specs import Lifetime

from gatekey_server.commands import events, lookup
from gatekey_server.commands.mutations import chain
from gatekey_server.store import api_keys, audit, changes, principals, products, tenants
from gatekey_server.store.database import Connection, Database

BATCH = 500
MAX_REST_S = 0.1
MAX_TENANTS = 1000
"""How many tenants one round tries to remove."""
MAX_FAILURES = 1000
"""A round ends after this many keys, principals or products that could not be removed."""

T = TypeVar("T")

_log = structlog.get_logger()


async def purge_expired(database: Database, key_retention: timedelta, now: datetime) -> dict[str, int]:
    """Do one round. Return how many of each kind were removed.

    One that cannot be removed is left for the next round, and does not delay the others.
    """
    removed = {}
    for what, purge in {
        "principals": lambda: _purge_principals(database),
        "tenants": lambda: _purge_tenants(database, now),
        "products": lambda: _purge_products(database),
        "api_keys": lambda: _purge_keys(database, key_retention, now),
        "past_secrets": lambda: _purge_past_secrets(database, key_retention),
        "requests": lambda: _purge_requests(database),
        "changes": lambda: changes.purge(database),
    }.items():
        removed[what] = await _unless_it_fails(what, purge) or 0
    return removed


async def _unless_it_fails(what: str, work: Callable[[], Awaitable[T]]) -> T | None:
    """Run a part of a round; None where it failed, unless the database is the cause."""
    try:
        return await work()
    except (Unavailable, Overloaded):
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is
        _log.exception("maintenance.failed", what=what, error=type(error).__name__)
        return None


async def _rest(busy_s: float) -> None:
    """Sleep for as long as the last step took."""
    await asyncio.sleep(min(busy_s, MAX_REST_S))


async def _purge_principals(database: Database) -> int:
    count, left = 0, list[int]()
    while len(left) < MAX_FAILURES and (removed := await principals.next_removed(database, left)) is not None:
        what = f"principal {removed.principal_uid}"
        is_done = await _unless_it_fails(what, partial(principals.purge_removed, database, removed, _rest))
        if is_done is None:
            left.append(removed.principal_uid)
        elif is_done:
            count += 1
        else:
            # Another server is removing it.
            break
    return count


async def _purge_tenants(database: Database, now: datetime) -> int:
    count, tried = 0, list[int]()
    while len(tried) < MAX_TENANTS and (tenant := await tenants.next_due(database, tried)) is not None:
        tried.append(tenant.uid)
        if await _unless_it_fails(str(tenant.name), partial(_purge_tenant, database, tenant, now)):
            count += 1
    return count


async def _purge_products(database: Database) -> int:
    count, tried = 0, list[str]()
    while len(tried) < MAX_FAILURES and (name := await products.next_deleted(database, tried)) is not None:
        tried.append(name.product)
        if await _unless_it_fails(str(name), partial(_purge_product, database, name)):
            count += 1
    return count


async def _purge_product(database: Database, name: ProductName) -> bool:
    async for took_s in products.purge(database, name):
        await _rest(took_s)
    return True


async def _purge_tenant(database: Database, tenant: Tenant, now: datetime) -> bool:
    async for took_s in tenants.purge_contents(database, tenant):
        await _rest(took_s)
    await _finish_tenant(database, tenant, now)
    return True


async def _finish_tenant(database: Database, tenant: Tenant, now: datetime) -> None:
    async def work(connection: Connection) -> None:
        if await tenants.lock(connection, tenant.name) is None:
            return
        await tenants.purge(connection, tenant)
        await _append(connection, tenant, "PurgeTenant", str(tenant.name), describe(tenant), now)

    await database.transaction(work, scope=chain(tenant.name))


async def _purge_keys(database: Database, retention: timedelta, now: datetime) -> int:
    count, left = 0, set[ApiKeyName]()
    while True:
        async with database.connection() as connection:
            names = await api_keys.list_ended(connection, retention, BATCH + len(left))
        names = [name for name in names if name not in left]
        for name in names:
            if await _unless_it_fails(str(name), partial(_purge_key, database, name, retention, now)):
                count += 1
            else:
                left.add(name)
        if len(names) < BATCH or len(left) >= MAX_FAILURES:
            return count


async def _purge_key(database: Database, name: ApiKeyName, retention: timedelta, now: datetime) -> bool:
    key_uid = parse_key_id(name.api_key)
    if key_uid is None:
        raise AssertionError("keys in the database have uids")

    async def work(connection: Connection) -> bool:
        product, tenant = await lookup.tenant_for_change(connection, name.parent)
        key = await api_keys.get(connection, tenant, key_uid)
        # Its expiry may have been extended since it was listed.
        ends = [time for time in (key.expire_time, key.revoke_time) if time is not None] if key else []
        if key is None or not any(time < now - retention for time in ends):
            return False
        _, owner_uid = await api_keys.delete(connection, tenant, key_uid)
        machine_users = product.compiled.spec.machine_users
        if owner_uid is not None and machine_users and machine_users.lifetime is Lifetime.BOUND_TO_KEYS:
            await principals.delete_if_keyless(connection, tenant, owner_uid)
        await _append(connection, tenant, "PurgeApiKey", str(name), describe(key), now)
        return True

    try:
        return await database.transaction(work, scope=chain(name))
    except (NotFound, FailedPrecondition):
        # The tenant is deleted, or being deleted.
        return False


async def _purge_past_secrets(database: Database, retention: timedelta) -> int:
    count = 0
    while True:
        async with database.connection() as connection:
            purged = await api_keys.purge_past_secrets(connection, retention, BATCH)
        count += purged
        if purged < BATCH:
            return count


async def _purge_requests(database: Database) -> int:
    count = 0
    while True:
        async with database.connection() as connection:
            purged = await audit.purge_requests(connection, BATCH)
        count += purged
        if purged < BATCH:
            return count


async def _append(
    connection: Connection, tenant: Tenant, verb: str, target: str, before: Description | None, now: datetime
) -> None:
    await events.append(
        connection,
        await audit.head(connection, *chain(tenant.name)),
        time=now,
        verb=verb,
        target=target,
        caller=str(builtin.PRODUCT),
        before=before,
        after=None,
        revision=(await changes.take_position(connection)).position.revision,
    )
