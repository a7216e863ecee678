"""API keys, and the digests of their secrets."""

import json
import uuid
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TypeVar

import asyncpg
import structlog
from gatekey.core.entities import ApiKey, Creator, Principal, SecretInfo, Tenant
from gatekey.core.grants import Grant
from gatekey.core.key_rules import KeySettings
from gatekey.core.names import ApiKeyName, TenantName, format_key_id, parse_key_id
from gatekey.core.secrets import Digest, SealedSecret
from gatekey.core.specs import AccessMode, KeyKind
from pydantic import TypeAdapter

from gatekey_server.store.database import Connection, Database
from gatekey_server.store.pauses import Pauses
from gatekey_server.store.principals import principal_name
from gatekey_server.store.queries import queries
from gatekey_server.store.slices import Slice

_GRANTS = TypeAdapter(tuple[Grant, ...])
_LABELS = TypeAdapter(dict[str, str])
_SLOTS = (1, 2)
_NOBODY = Creator()
SCANNED_KEYS = 5000
"""How many keys of removed owners one query skips at most."""

_log = structlog.get_logger()
T = TypeVar("T")
_UPDATE_USES_SQL: str = queries.usage_update.sql
_INSERT_USES_SQL: str = queries.usage_insert.sql
_RESOLVE_UIDS_SQL: str = queries.usage_find.sql


async def get(connection: Connection, tenant: Tenant, key_uid: uuid.UUID) -> ApiKey | None:
    """Return a key of the tenant."""
    row = await queries.key_get(connection, tenant_uid=tenant.uid, key_uid=key_uid)
    return None if row is None else _to_key(tenant, row)


async def page(
    connection: Connection, tenant: Tenant, after: uuid.UUID, limit: int, owner: Principal | Tenant | None = None
) -> Slice[ApiKey, uuid.UUID]:
    """Return up to `limit` keys of the tenant, or of one owner in it, after the uid `after`."""
    if isinstance(owner, Tenant):
        rows = queries.key_list_of_tenant(connection, tenant_uid=tenant.uid, after=after, limit=limit)
        return Slice.of(await _to_keys(tenant, rows), limit, lambda key: key.uid)
    if owner is not None:
        rows = queries.key_list_by_principal(
            connection, tenant_uid=tenant.uid, principal_uid=owner.uid, after=after, limit=limit
        )
        return Slice.of(await _to_keys(tenant, rows), limit, lambda key: key.uid)
    rows = queries.key_list(connection, tenant_uid=tenant.uid, after=after, scan=SCANNED_KEYS, limit=limit)
    found = Slice.of(await _to_keys(tenant, rows), limit, lambda key: key.uid)
    if found.last is not None:
        return found
    return Slice(
        found.items,
        await queries.key_scan_end(connection, tenant_uid=tenant.uid, after=after, scan=SCANNED_KEYS),
    )


async def _to_keys(tenant: Tenant, rows: AsyncIterable[asyncpg.Record]) -> list[ApiKey]:
    """Return the keys of rows. Yields to the event loop, because parsing many grants takes a millisecond."""
    keys, pause = [], Pauses()
    async for row in rows:
        keys.append(_to_key(tenant, row))
        await pause()
    return keys


async def insert(
    connection: Connection,
    tenant: Tenant,
    key_uid: uuid.UUID,
    *,
    owner: Principal | None,
    display_name: str,
    description: str = "",
    labels: Mapping[str, str] = MappingProxyType({}),
    kind: KeyKind,
    mode: AccessMode | None,
    grants: tuple[Grant, ...],
    expire_time: datetime | None,
    secret: SealedSecret,
    creator: Creator = _NOBODY,
    actor_required: bool = False,
) -> None:
    """Create a key with its first secret."""
    await queries.key_insert(
        connection,
        tenant_uid=tenant.uid,
        key_uid=key_uid,
        principal_uid=owner.uid if owner else None,
        display_name=display_name,
        description=description,
        labels=json.dumps(dict(labels)),
        kind=kind,
        mode=mode,
        grants=_write_grants(mode, grants),
        expire_time=expire_time,
        creator_actor=creator.actor,
        creator_caller=creator.caller,
        creator_caller_display_name=creator.caller_display_name,
        actor_required=actor_required,
    )
    await _insert_secret(connection, tenant, key_uid, _SLOTS[0], secret)


async def update(connection: Connection, tenant: Tenant, key_uid: uuid.UUID, settings: KeySettings) -> None:
    """Change the settings of a key of a locked tenant."""
    await queries.key_update(
        connection,
        tenant_uid=tenant.uid,
        key_uid=key_uid,
        display_name=settings.display_name,
        description=settings.description,
        labels=json.dumps(dict(settings.labels)),
        mode=settings.mode,
        grants=_write_grants(settings.mode, settings.grants),
        expire_time=settings.expire_time,
    )


async def disable(connection: Connection, tenant: Tenant, key: ApiKey) -> ApiKey:
    """Disable a key of a locked tenant. Returns the changed key."""
    row = await queries.key_disable(connection, tenant_uid=tenant.uid, key_uid=key.uid)
    return replace(key, disable_time=row["disable_time"], version=row["version"])


async def enable(connection: Connection, tenant: Tenant, key: ApiKey) -> ApiKey:
    """Enable a key of a locked tenant. Returns the changed key."""
    row = await queries.key_enable(connection, tenant_uid=tenant.uid, key_uid=key.uid)
    return replace(key, disable_time=None, version=row["version"])


async def revoke(connection: Connection, tenant: Tenant, key: ApiKey, reason: str) -> ApiKey:
    """Revoke a key of a locked tenant. Returns the changed key."""
    row = await queries.key_revoke(connection, tenant_uid=tenant.uid, key_uid=key.uid, reason=reason)
    return replace(key, revoke_time=row["revoke_time"], revoke_reason=reason, version=row["version"])


async def rotate(
    connection: Connection, tenant: Tenant, key_uid: uuid.UUID, secret: SealedSecret, grace: timedelta
) -> None:
    """Give a key of a locked tenant a new secret. Of the older ones only the newest keeps working, for `grace`."""
    rows = [row async for row in queries.secret_slots(connection, tenant_uid=tenant.uid, key_uid=key_uid)]
    where = {"tenant_uid": tenant.uid, "key_uid": key_uid}
    gone = rows if not grace else rows[1:]
    for row in gone:
        await queries.secret_delete(connection, **where, slot=row["slot"])
    kept = [row["slot"] for row in rows if row not in gone]
    for slot in kept:
        await queries.secret_retire(connection, **where, slot=slot, grace=grace)
    free = next(slot for slot in _SLOTS if slot not in kept)
    await _insert_secret(connection, tenant, key_uid, free, secret)
    await queries.key_touch(connection, **where)


async def count_up_to(connection: Connection, tenant: Tenant, limit: int) -> int:
    """Count the keys of a tenant, as far as `limit`."""
    return int(await queries.key_count_up_to(connection, tenant_uid=tenant.uid, limit=limit))


async def count_living(connection: Connection, tenant: Tenant, now: datetime, limit: int) -> int:
    """Count the keys of a tenant that are neither revoked nor expired, as far as `limit`."""
    return int(await queries.key_count_living(connection, tenant_uid=tenant.uid, now=now, limit=limit))


async def display_name(connection: Connection, tenant_uid: int, key_uid: uuid.UUID) -> str | None:
    """Return the display name of a key; None where there is no such key."""
    name: str | None = await queries.key_display_name(connection, tenant_uid=tenant_uid, key_uid=key_uid)
    return name


async def list_ended(connection: Connection, retention: timedelta, limit: int) -> list[ApiKeyName]:
    """Return up to about `limit` keys that expired or were revoked longer ago than `retention`."""
    rows = queries.key_list_ended(connection, retention=retention, limit=limit)
    return [
        ApiKeyName(TenantName(row["product_id"], row["tenant_id"]), format_key_id(row["key_uid"])) async for row in rows
    ]


async def record_uses(database: Database, uses: Mapping[tuple[int, uuid.UUID], datetime]) -> None:
    """Store when keys were last used, by the uids of tenant and key."""
    # Most were used before. Updating these does not lock the rows of their keys, which would write those as well.
    rows = await database.fetch(_UPDATE_USES_SQL, *_columns(uses))
    written = {(row["tenant_uid"], row["key_uid"]) for row in rows}
    others = {uid: time for uid, time in uses.items() if uid not in written}
    if others:
        # In a transaction of its own, because it may wait for locks.
        await database.fetch(_INSERT_USES_SQL, *_columns(others))


async def resolve_key_uids(database: Database, keys: Sequence[ApiKeyName]) -> dict[ApiKeyName, tuple[int, uuid.UUID]]:
    """Return the uids of tenant and key, for those of the keys that exist."""
    by_uid = {uid: key for key in keys if (uid := parse_key_id(key.api_key)) is not None}
    parents = [key.parent for key in by_uid.values()]
    rows = await database.fetch(
        _RESOLVE_UIDS_SQL, [parent.product for parent in parents], [parent.tenant for parent in parents], list(by_uid)
    )
    return {by_uid[row["key_uid"]]: (row["tenant_uid"], row["key_uid"]) for row in rows}


async def locate(connection: Connection, digests: Sequence[Digest]) -> tuple[ApiKeyName, SecretInfo] | None:
    """Return the name of the key that a secret belongs or belonged to, and the secret's times.

    None for a secret that never existed, or that ended longer ago than the retention of `purge_past_secrets`.
    """
    row = await queries.secret_locate(connection, digests=digests)
    if row is None:
        return None
    name = ApiKeyName(TenantName(row["product_id"], row["tenant_id"]), format_key_id(row["key_uid"]))
    end = min(filter(None, (row["expire_time"], row["end_time"])), default=None)
    return name, SecretInfo(row["hint"], row["create_time"], end)


async def purge_past_secrets(connection: Connection, retention: timedelta, limit: int) -> int:
    """Purge up to `limit` secrets that ended longer ago than `retention`. Returns how many."""
    return int(await queries.past_secret_purge(connection, retention=retention, limit=limit))


async def delete(connection: Connection, tenant: Tenant, key_uid: uuid.UUID) -> tuple[bool, int | None]:
    """Delete a key with its secrets. Returns whether it existed, and its owner's uid."""
    row = await queries.key_delete(connection, tenant_uid=tenant.uid, key_uid=key_uid)
    return (False, None) if row is None else (True, row["principal_uid"])


def parse_grants(text: str | None) -> tuple[Grant, ...]:
    """Parse stored grants. Null stands for none."""
    return _GRANTS.validate_json(text) if text else ()


def _columns(
    uses: Mapping[tuple[int, uuid.UUID], datetime],
) -> tuple[Sequence[int], Sequence[uuid.UUID], Sequence[datetime]]:
    ordered = sorted(uses.items())
    return (
        [tenant_uid for (tenant_uid, _), _ in ordered],
        [key_uid for (_, key_uid), _ in ordered],
        [time for _, time in ordered],
    )


def _write_grants(mode: AccessMode | None, grants: tuple[Grant, ...]) -> str | None:
    return _GRANTS.dump_json(grants).decode() if mode is AccessMode.RESTRICTED else None


async def _insert_secret(
    connection: Connection, tenant: Tenant, key_uid: uuid.UUID, slot: int, secret: SealedSecret
) -> None:
    await queries.secret_insert(
        connection,
        tenant_uid=tenant.uid,
        key_uid=key_uid,
        slot=slot,
        digest=secret.digest,
        pepper_version=secret.pepper_version,
        hint=secret.hint,
    )


def _legible(read: Callable[[str], T], text: str, otherwise: T) -> T:
    """Return the parsed value, or `otherwise` where it cannot be parsed, so that the key can be listed and revoked."""
    try:
        return read(text)
    except ValueError as error:
        _log.error("api_key.unreadable", error=type(error).__name__, exc_info=error)
        return otherwise


def _to_key(tenant: Tenant, row: asyncpg.Record) -> ApiKey:
    kind = KeyKind(row["kind"])
    owner = principal_name(tenant.name, row["owner_kind"], row["owner_id"]) if row["owner_kind"] else tenant.name
    secrets = zip(row["hints"] or (), row["create_times"] or (), row["expire_times"] or (), strict=True)
    return ApiKey(
        uid=row["key_uid"],
        name=ApiKeyName(tenant.name, format_key_id(row["key_uid"])),
        display_name=row["display_name"],
        kind=kind,
        owner=None if kind is KeyKind.PUBLISHABLE else owner,
        mode=AccessMode(row["mode"]) if row["mode"] else None,
        grants=_legible(parse_grants, row["grants"], ()),
        create_time=row["create_time"],
        expire_time=row["expire_time"],
        disable_time=row["disable_time"],
        revoke_time=row["revoke_time"],
        secrets=tuple(SecretInfo(hint, created, expires) for hint, created, expires in secrets),
        description=row["description"],
        labels=_legible(_LABELS.validate_json, row["labels"], {}),
        revoke_reason=row["revoke_reason"],
        version=row["version"],
        last_use_time=row["last_use_time"],
        creator=Creator(row["creator_actor"], row["creator_caller"], row["creator_caller_display_name"]),
        actor_required=row["actor_required"],
    )
