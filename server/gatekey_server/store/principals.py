"""Members and machine users."""

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import asyncpg
from gatekey.core.decisions import PrincipalKind
from gatekey.core.entities import Principal, Tenant
from gatekey.core.names import MachineUserName, MemberName, PrincipalName, TenantName, format_key_id

from gatekey_server.store.database import Connection, Database
from gatekey_server.store.queries import queries

PURGE_BATCH_ROWS = 1000


class RemovedPrincipal(NamedTuple):
    """The uids of a removed principal whose rows are not purged yet."""

    tenant_uid: int
    principal_uid: int


def principal_name(tenant: TenantName, kind: str, principal_id: str) -> PrincipalName:
    """Return the resource name of a principal."""
    if kind == PrincipalKind.MACHINE_USER:
        return MachineUserName(tenant, principal_id)
    return MemberName(tenant, principal_id)


async def get(connection: Connection, tenant: Tenant, name: PrincipalName) -> Principal | None:
    """Return a principal of the tenant."""
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
    """Return up to `limit` principals, of one kind or of both, after the uid `after`."""
    if kind is None:
        rows = queries.principal_list(connection, tenant_uid=tenant.uid, after=after, limit=limit)
    else:
        rows = queries.principal_list_by_kind(connection, tenant_uid=tenant.uid, kind=kind, after=after, limit=limit)
    return [_to_principal(tenant, row) async for row in rows]


async def remove(connection: Connection, tenant: Tenant, principal: Principal) -> None:
    """Mark a principal of a locked tenant as removed, with its keys. Its rows are purged later."""
    await queries.principal_remove(connection, tenant_uid=tenant.uid, principal_uid=principal.uid)


async def next_removed(database: Database, but: Sequence[int] = ()) -> RemovedPrincipal | None:
    """Return a removed principal whose rows still exist, and whose uid is not in `but`."""
    async with database.connection() as connection:
        row = await queries.principal_next_removed(connection, but=but)
    return None if row is None else RemovedPrincipal(row["tenant_uid"], row["principal_uid"])


async def purge_removed(
    database: Database, principal: RemovedPrincipal, rest: Callable[[float], Awaitable[None]]
) -> bool:
    """Delete the rows of a removed principal in transactions of bounded size. Returns False where another server did.

    `rest` is called with the seconds that each took. The purge may be interrupted and repeated, and run several times
    at once.
    """
    identity = principal._asdict()
    after: uuid.UUID | None = uuid.UUID(int=0)
    while after is not None:
        began = time.monotonic()
        after = await database.transaction(partial(_purge_some_keys, identity=identity, after=after))
        await rest(time.monotonic() - began)
    return await database.transaction(partial(_purge, identity=identity))


async def _purge_some_keys(
    connection: Connection, *, identity: Mapping[str, int], after: uuid.UUID
) -> uuid.UUID | None:
    await queries.purge_begin(connection)
    last: uuid.UUID | None = await queries.principal_purge_keys(
        connection, **identity, after=after, limit=PURGE_BATCH_ROWS
    )
    return last


async def _purge(connection: Connection, *, identity: Mapping[str, int]) -> bool:
    await queries.purge_begin(connection)
    return await queries.principal_purge(connection, **identity) is not None


async def delete_if_keyless(connection: Connection, tenant: Tenant, principal_uid: int) -> bool:
    """Delete a machine user that has no key left. Does nothing for other principals."""
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


async def count_with_role(connection: Connection, tenant: Tenant, role: str, limit: int) -> int:
    """Count the members that have a role, as far as `limit`."""
    return int(await queries.member_count_with_role(connection, tenant_uid=tenant.uid, role=role, limit=limit))


async def has_member(connection: Connection, tenant: Tenant) -> bool:
    """Whether a tenant has a member."""
    return bool(await queries.member_exists(connection, tenant_uid=tenant.uid))


async def has_key(connection: Connection, tenant: Tenant, principal: Principal) -> bool:
    """Whether a principal has a key, in whatever state."""
    return await count_keys(connection, tenant, principal, 1) > 0


async def count_keys(connection: Connection, tenant: Tenant, principal: Principal, limit: int) -> int:
    """Count the keys that go with a principal, as far as `limit`."""
    count = await queries.principal_count_keys(
        connection, tenant_uid=tenant.uid, principal_uid=principal.uid, limit=limit
    )
    return int(count)


async def key_ids(connection: Connection, tenant: Tenant, principal: Principal, limit: int) -> list[str]:
    """Return the ids of a principal's first `limit` keys, in the order of their creation."""
    rows = queries.principal_key_uids(connection, tenant_uid=tenant.uid, principal_uid=principal.uid, limit=limit)
    return [format_key_id(row["key_uid"]) async for row in rows]


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
