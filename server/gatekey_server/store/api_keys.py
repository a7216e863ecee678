"""API keys and what is stored of their secrets."""

import uuid
from datetime import datetime

import asyncpg
from pydantic import TypeAdapter

from gatekey_server.domain.entities import ApiKey, Principal, SecretInfo, Tenant
from gatekey_server.domain.grants import Grant
from gatekey_server.domain.names import ApiKeyName, format_key_id
from gatekey_server.domain.secrets import SealedSecret
from gatekey_server.domain.specs import AccessMode, KeyKind
from gatekey_server.store.database import Connection
from gatekey_server.store.principals import principal_name
from gatekey_server.store.queries import queries

_GRANTS = TypeAdapter(tuple[Grant, ...])
_FIRST_SLOT = 1


async def get(connection: Connection, tenant: Tenant, key_uid: uuid.UUID) -> ApiKey | None:
    """Read a key of the tenant."""
    row = await queries.key_get(connection, tenant_uid=tenant.uid, key_uid=key_uid)
    return None if row is None else _to_key(tenant, row)


async def page(
    connection: Connection, tenant: Tenant, after: uuid.UUID, limit: int, owner: Principal | None = None
) -> list[ApiKey]:
    """Read up to `limit` keys of the tenant, or of one owner in it, from the one after `after`."""
    if owner is None:
        rows = queries.key_list(connection, tenant_uid=tenant.uid, after=after, limit=limit)
    else:
        rows = queries.key_list_by_principal(
            connection, tenant_uid=tenant.uid, principal_uid=owner.uid, after=after, limit=limit
        )
    return [_to_key(tenant, row) async for row in rows]


async def insert(
    connection: Connection,
    tenant: Tenant,
    key_uid: uuid.UUID,
    *,
    owner: Principal | None,
    display_name: str,
    kind: KeyKind,
    mode: AccessMode | None,
    grants: tuple[Grant, ...],
    expire_time: datetime | None,
    secret: SealedSecret,
) -> None:
    """Create a key with its first secret."""
    await queries.key_insert(
        connection,
        tenant_uid=tenant.uid,
        key_uid=key_uid,
        principal_uid=owner.uid if owner else None,
        display_name=display_name,
        kind=kind,
        mode=mode,
        grants=_GRANTS.dump_json(grants).decode() if mode is AccessMode.RESTRICTED else None,
        expire_time=expire_time,
    )
    await queries.secret_insert(
        connection,
        tenant_uid=tenant.uid,
        key_uid=key_uid,
        slot=_FIRST_SLOT,
        digest=secret.digest,
        pepper_version=secret.pepper_version,
        hint=secret.hint,
    )


async def delete(connection: Connection, tenant: Tenant, key_uid: uuid.UUID) -> tuple[bool, int | None]:
    """Remove a key with its secrets. Answers whether there was one, and its owner's uid."""
    row = await queries.key_delete(connection, tenant_uid=tenant.uid, key_uid=key_uid)
    return (False, None) if row is None else (True, row["principal_uid"])


def parse_grants(text: str | None) -> tuple[Grant, ...]:
    """Read grants as they are stored; null stands for none."""
    return _GRANTS.validate_json(text) if text else ()


def _to_key(tenant: Tenant, row: asyncpg.Record) -> ApiKey:
    owner = principal_name(tenant.name, row["owner_kind"], row["owner_id"]) if row["owner_kind"] else None
    secrets = zip(row["hints"] or (), row["create_times"] or (), row["expire_times"] or (), strict=True)
    return ApiKey(
        uid=row["key_uid"],
        name=ApiKeyName(tenant.name, format_key_id(row["key_uid"])),
        display_name=row["display_name"],
        kind=KeyKind(row["kind"]),
        owner=owner,
        mode=AccessMode(row["mode"]) if row["mode"] else None,
        grants=parse_grants(row["grants"]),
        create_time=row["create_time"],
        expire_time=row["expire_time"],
        disable_time=row["disable_time"],
        revoke_time=row["revoke_time"],
        secrets=tuple(SecretInfo(*secret) for secret in secrets),
    )
