"""Reading what the keys and principals of a product are given, in slices, and what of that has changed since."""

import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import asyncpg
from gatekey.core.changes import Position
from gatekey.core.grants import Grant
from gatekey.core.names import ProductName
from gatekey.core.specs import AccessMode, KeyKind, KeyOwner

from gatekey_server.store.api_keys import parse_grants
from gatekey_server.store.database import Connection
from gatekey_server.store.queries import queries

FEW = 25
"""Tenants with up to this many keys, or principals, are read many at a time."""

_SCAN = 1000
FIRST_KEY, _LAST_KEY = uuid.UUID(int=0), uuid.UUID(int=2**128 - 1)
FIRST_UID, _LAST_UID = 0, 2**63 - 1
U = TypeVar("U")

KeyUid = tuple[int, uuid.UUID]
"""The uids of a tenant and of a key in it."""


@dataclass(frozen=True, slots=True)
class KeyGroup:
    """Keys with the same kind, owner, mode and grants."""

    kind: KeyKind
    owner: KeyOwner | None
    """None for publishable keys."""
    mode: AccessMode | None
    grants_digest: bytes | None
    count: int
    first: Sequence[KeyUid]


@dataclass(frozen=True, slots=True)
class PrincipalGroup:
    """Members with the same role, or machine users."""

    role: str | None
    """None for machine users."""
    count: int
    first: Sequence[tuple[int, str]]
    """The ids of the principals, and the uids of their tenants."""


@dataclass(frozen=True, slots=True)
class Changed:
    """The changes in the tenants of a product that are not deleted, up to a position."""

    position: Position
    tenants: dict[int, str] = field(default_factory=dict)
    """The ids of the tenants with changes, by uid."""
    whole: set[int] = field(default_factory=set)
    """The uids of the tenants in which anything may have changed."""
    principals: set[tuple[int, int]] = field(default_factory=set)
    keys: set[KeyUid] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class PrincipalFilter:
    """The filter of members and machine users."""

    roles: Collection[str]
    machine_users: bool


async def position(connection: Connection) -> Position:
    """Return the current position. Whatever is read afterwards is as of then, or has changed since."""
    row = await queries.position_read(connection)
    return Position(row["current"], row["stamp"])


async def changes_since(connection: Connection, product: ProductName, since: Position, limit: int) -> Changed | None:
    """Return what has changed in a product; None where that is unknown, or more than `limit` changes would be read."""
    rows = [
        row
        async for row in queries.product_changes(
            connection, product_id=product.product, revision=since.revision, stamp=since.stamp, limit=limit
        )
    ]
    if not rows or not rows[0]["continuous"] or len(rows) >= limit:
        return None
    changed = Changed(Position(rows[0]["current"], rows[0]["stamp"]))
    return changed if all(_add(changed, row) for row in rows) else None


def _add(changed: Changed, row: asyncpg.Record) -> bool:
    """Add one change. Returns False for a change of everything."""
    tenant, principal, key = row["tenant_uid"], row["principal_uid"], row["key_uid"]
    if tenant is None:
        return row["change_uid"] is None or row["product_id"] is not None
    if row["tenant_id"] is None:
        return True
    changed.tenants[tenant] = row["tenant_id"]
    if key is not None:
        changed.keys.add((tenant, key))
    elif principal is not None:
        changed.principals.add((tenant, principal))
    else:
        changed.whole.add(tenant)
    return True


async def with_many_keys(connection: Connection, tenant_uids: Sequence[int]) -> list[int]:
    """Return the tenants that have more than `FEW` keys."""
    rows = queries.tenant_list_with_many_keys(connection, tenant_uids=tenant_uids, few=FEW)
    return [row["tenant_uid"] async for row in rows]


async def with_many_principals(connection: Connection, tenant_uids: Sequence[int]) -> list[int]:
    """Return the tenants that have more than `FEW` members and machine users."""
    rows = queries.tenant_list_with_many_principals(connection, tenant_uids=tenant_uids, few=FEW)
    return [row["tenant_uid"] async for row in rows]


async def end_of_keys(connection: Connection, tenant_uid: int, after: uuid.UUID) -> uuid.UUID | None:
    """Return the end of the next slice of a tenant's keys; None for the last slice."""
    end: uuid.UUID | None = await queries.key_scan_end(connection, tenant_uid=tenant_uid, after=after, scan=_SCAN)
    return end


async def end_of_principals(connection: Connection, tenant_uid: int, after: int) -> int | None:
    """Return the end of the next slice of a tenant's members and machine users; None for the last slice."""
    end: int | None = await queries.principal_scan_end(connection, tenant_uid=tenant_uid, after=after, scan=_SCAN)
    return end


async def key_groups(
    connection: Connection, tenant_uids: Sequence[int], after: uuid.UUID = FIRST_KEY, last: uuid.UUID | None = None
) -> list[KeyGroup]:
    """Return the unrevoked keys of some tenants in groups, after `after` and up to `last`, or to the end."""
    rows = queries.key_groups(connection, tenant_uids=tenant_uids, after=after, last=last or _LAST_KEY)
    return [_to_key_group(row) async for row in rows]


async def key_groups_of(connection: Connection, keys: Iterable[KeyUid]) -> list[KeyGroup]:
    """Return some keys in groups, as far as they exist and are not revoked."""
    tenant_uids, key_uids = _columns(keys)
    rows = queries.key_groups_of(connection, tenant_uids=tenant_uids, key_uids=key_uids)
    return [_to_key_group(row) async for row in rows]


async def grants_of(connection: Connection, keys: Iterable[KeyUid]) -> dict[KeyUid, tuple[Grant, ...]]:
    """Return the grants of some keys, as far as they exist."""
    tenant_uids, key_uids = _columns(keys)
    rows = queries.key_grants(connection, tenant_uids=tenant_uids, key_uids=key_uids)
    return {(row["tenant_uid"], row["key_uid"]): parse_grants(row["grants"]) async for row in rows}


async def principal_groups(
    connection: Connection,
    tenant_uids: Sequence[int],
    wanted: PrincipalFilter,
    after: int = FIRST_UID,
    last: int | None = None,
) -> list[PrincipalGroup]:
    """Return the matching principals of some tenants in groups, after `after` and up to `last`, or to the end."""
    rows = queries.principal_groups(
        connection,
        tenant_uids=tenant_uids,
        after=after,
        last=_LAST_UID if last is None else last,
        roles=wanted.roles,
        machine_users=wanted.machine_users,
    )
    return [_to_principal_group(row) async for row in rows]


async def principal_groups_of(
    connection: Connection, principals: Iterable[tuple[int, int]], wanted: PrincipalFilter
) -> list[PrincipalGroup]:
    """Return the matching ones of some principals in groups, as far as they exist."""
    tenant_uids, principal_uids = _columns(principals)
    rows = queries.principal_groups_of(
        connection,
        tenant_uids=tenant_uids,
        principal_uids=principal_uids,
        roles=wanted.roles,
        machine_users=wanted.machine_users,
    )
    return [_to_principal_group(row) async for row in rows]


async def losing_owners(connection: Connection, tenant_uids: Iterable[int], before: str, after: str) -> list[int]:
    """Return the tenants with members of the role that owned the tenant, and none of the role that will."""
    rows = queries.tenant_list_losing_owners(connection, tenant_uids=list(tenant_uids), before=before, after=after)
    return [row["tenant_uid"] async for row in rows]


def _columns(pairs: Iterable[tuple[int, U]]) -> tuple[list[int], list[U]]:
    listed = list(pairs)
    return [first for first, _ in listed], [second for _, second in listed]


def _to_key_group(row: asyncpg.Record) -> KeyGroup:
    kind = KeyKind(row["kind"])
    return KeyGroup(
        kind,
        KeyOwner(row["owner_kind"] or KeyOwner.TENANT) if kind is KeyKind.SECRET else None,
        AccessMode(row["mode"]) if row["mode"] else None,
        row["grants_digest"],
        row["keys"],
        list(zip(row["tenant_uids"], row["key_uids"], strict=True)),
    )


def _to_principal_group(row: asyncpg.Record) -> PrincipalGroup:
    first = list(zip(row["tenant_uids"], row["principal_ids"], strict=True))
    return PrincipalGroup(row["role"], row["principals"], first)
