"""What is removed once its time is over: deleted tenants, ended keys, answers kept for repetitions, changes.

In transactions of bounded size, in no hurry, and harmless where several servers do it at once.
"""

from datetime import datetime, timedelta

from gatekey_server.commands import events, lookup
from gatekey_server.domain import builtin
from gatekey_server.domain.audit import Description, describe
from gatekey_server.domain.entities import Tenant
from gatekey_server.domain.errors import FailedPrecondition, NotFound
from gatekey_server.domain.names import ApiKeyName, parse_key_id
from gatekey_server.domain.specs import Lifetime
from gatekey_server.store import api_keys, audit, changes, principals, tenants
from gatekey_server.store.database import Connection, Database

BATCH = 500


async def remove_what_is_over(database: Database, key_retention: timedelta, now: datetime) -> dict[str, int]:
    """Do one round; answers how much of what was removed."""
    return {
        "tenants": await _purge_tenants(database, now),
        "api_keys": await _purge_keys(database, key_retention, now),
        "requests": await _purge_requests(database),
        "changes": await changes.purge(database),
    }


async def _purge_tenants(database: Database, now: datetime) -> int:
    count = 0
    while (tenant := await tenants.next_due(database)) is not None:
        await tenants.purge_contents(database, tenant)
        await _finish_tenant(database, tenant, now)
        count += 1
    return count


async def _finish_tenant(database: Database, tenant: Tenant, now: datetime) -> None:
    async def work(connection: Connection) -> None:
        if await tenants.lock(connection, tenant.name) is None:
            return
        await tenants.purge(connection, tenant)
        await _append(connection, tenant, "PurgeTenant", str(tenant.name), describe(tenant), now)

    await database.transaction(work)


async def _purge_keys(database: Database, retention: timedelta, now: datetime) -> int:
    count = 0
    while True:
        async with database.connection() as connection:
            names = await api_keys.list_ended(connection, retention, BATCH)
        purged = 0
        for name in names:
            purged += await _purge_key(database, name, retention, now)
        count += purged
        if purged < BATCH:
            return count


async def _purge_key(database: Database, name: ApiKeyName, retention: timedelta, now: datetime) -> bool:
    key_uid = parse_key_id(name.api_key)
    if key_uid is None:
        raise AssertionError("keys in the database have uids")

    async def work(connection: Connection) -> bool:
        product, tenant = await lookup.tenant_for_change(connection, name.parent)
        key = await api_keys.get(connection, tenant, key_uid)
        # It may have been given more time since it was listed.
        ends = [time for time in (key.expire_time, key.revoke_time) if time is not None] if key else []
        if key is None or not any(time < now - retention for time in ends):
            return False
        _, owner_uid = await api_keys.delete(connection, tenant, key_uid)
        machine_users = product.policy.spec.machine_users
        if owner_uid is not None and machine_users and machine_users.lifetime is Lifetime.BOUND_TO_KEYS:
            await principals.delete_if_keyless(connection, tenant, owner_uid)
        await _append(connection, tenant, "PurgeApiKey", str(name), describe(key), now)
        return True

    try:
        return await database.transaction(work)
    except (NotFound, FailedPrecondition):
        # The tenant is gone, or on its way.
        return False


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
        tenant.name.product,
        tenant.name.tenant,
        time=now,
        verb=verb,
        target=target,
        caller=str(builtin.PRODUCT),
        before=before,
        after=None,
        revision=await changes.take_revision(connection),
    )
