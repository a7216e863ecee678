"""Loading the snapshots of secrets."""

import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache

import asyncpg
from gatekey.core.decisions import CompiledSpec, KeySnapshot, Owner, PrincipalKind
from gatekey.core.errors import DomainError
from gatekey.core.grants import GrantSet
from gatekey.core.names import ApiKeyName, format_key_id, parse_key_id
from gatekey.core.secrets import Digest
from gatekey.core.specs import AccessMode, KeyKind

from gatekey_server.store.api_keys import parse_grants
from gatekey_server.store.database import Connection, Database, unavailable
from gatekey_server.store.pauses import Pauses
from gatekey_server.store.products import CompiledSpecs
from gatekey_server.store.queries import queries

_SNAPSHOTS_SQL: str = queries.snapshots_by_digest.sql
_PRODUCT_SQL: str = queries.product_by_digest.sql
_DIGESTS_SQL: str = queries.digests_by_key.sql


@dataclass(frozen=True, slots=True)
class Damage:
    """Why a snapshot cannot be read, and its product."""

    product: str
    cause: Exception


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Snapshots, and the revision at which they were read."""

    revision: int
    snapshots: Mapping[Digest, KeySnapshot]
    """By digest. Digests without a secret, and those whose snapshot cannot be read, are absent."""
    server: datetime
    """The start time of the database server, which identifies it."""
    unreadable: Mapping[Digest, Damage] = field(default_factory=dict)
    """The snapshots that cannot be read, by digest."""
    positions: Sequence[tuple[int, uuid.UUID]] = ()
    """The revisions and stamps of the statements that have read them."""


async def load(database: Database, specs: CompiledSpecs, digests: Sequence[Digest]) -> LoadResult:
    """Return the snapshots behind digests, in one round trip. Where some cannot be read, more round trips find which.

    Raises `Unavailable` where the database does not respond.
    """
    try:
        known = specs.known()
        return await _to_loaded(specs, known, await database.fetch(_SNAPSHOTS_SQL, list(known), digests))
    except DomainError:
        raise
    except Exception as error:
        if not digests:
            raise
        if len(digests) == 1:
            rows = await database.fetch(_PRODUCT_SQL, digests[0])
            if not rows:
                # It existed a moment ago.
                raise unavailable() from error
            damage = Damage(rows[0]["product_id"], error)
            return replace(await load(database, specs, ()), unreadable={digests[0]: damage})
        half = len(digests) // 2
        return _together(await load(database, specs, digests[:half]), await load(database, specs, digests[half:]))


async def load_within(connection: Connection, specs: CompiledSpecs, digests: Sequence[Digest]) -> LoadResult:
    """Return the snapshots behind digests in a transaction, as of this statement."""
    known = specs.known()
    return await _to_loaded(specs, known, await connection.fetch(_SNAPSHOTS_SQL, list(known), digests))


async def _to_loaded(
    specs: CompiledSpecs, known: Mapping[bytes, CompiledSpec], rows: Sequence[asyncpg.Record]
) -> LoadResult:
    if not rows:
        # A restore has created the table `revision`, and not its row yet.
        raise unavailable()
    snapshots, unreadable = dict[Digest, KeySnapshot](), dict[Digest, Damage]()
    pause = Pauses()
    for row in rows:
        # Yield: many grants take a millisecond, and large specs several.
        await pause()
        if row["digest"] is not None:
            digest = Digest(row["digest"])
            try:
                snapshots[digest] = _to_snapshot(row, specs.compiled(known, row["spec_digest"], row["spec"]))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this row's
                unreadable[digest] = Damage(row["product_id"], error)
    revision = rows[0]["revision"]
    return LoadResult(revision, snapshots, rows[0]["server"], unreadable, [(revision, rows[0]["stamp"])])


def _together(one: LoadResult, other: LoadResult) -> LoadResult:
    """Return the results of two statements, as of the older one: newer data may pass for older, never the reverse."""
    if one.server != other.server:
        raise unavailable()
    return LoadResult(
        min(one.revision, other.revision),
        {**one.snapshots, **other.snapshots},
        one.server,
        {**one.unreadable, **other.unreadable},
        [*one.positions, *other.positions],
    )


async def digests(where: "Database | Connection", key: ApiKeyName) -> tuple[Digest, ...]:
    """Return the digests of a key's secrets, the one that expires last first; none where there is no such key."""
    key_uid = parse_key_id(key.api_key)
    if key_uid is None:
        return ()
    rows = await where.fetch(_DIGESTS_SQL, key.parent.product, key.parent.tenant, key_uid)
    return tuple(Digest(row["digest"]) for row in rows)


def _to_snapshot(row: asyncpg.Record, compiled: CompiledSpec) -> KeySnapshot:
    role = sys.intern(row["owner_role"]) if row["owner_role"] else None
    owner = Owner(PrincipalKind(row["owner_kind"]), row["owner_id"], role) if row["owner_kind"] else None
    return KeySnapshot(
        compiled=compiled,
        # One string object for all snapshots that share it.
        tenant=sys.intern(row["tenant_id"]),
        tenant_suspended=row["is_suspended"],
        tenant_deleted=row["is_deleted"],
        key_id=format_key_id(row["key_uid"]),
        kind=KeyKind(row["kind"]),
        mode=AccessMode(row["mode"]) if row["mode"] else None,
        grants=_grants(row["grants"]),
        owner=owner,
        key_revoked=row["is_revoked"],
        key_disabled=row["is_disabled"],
        uid=(row["tenant_uid"], row["key_uid"]),
        principal_uid=row["principal_uid"],
        was_used=row["was_used"],
        actor_required=row["actor_required"],
        expire_time=row["expire_time"],
    )


# Many keys have the same grants, and their snapshots share the set.
@lru_cache(maxsize=4096)
def _grants(text: str | None) -> GrantSet:
    return GrantSet.of(parse_grants(text))
