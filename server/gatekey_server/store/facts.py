"""The facts behind secrets."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

import asyncpg

from gatekey_server.domain.decisions import Fact, Owner, Policy, PrincipalKind
from gatekey_server.domain.grants import GrantSet
from gatekey_server.domain.names import ApiKeyName, format_key_id, parse_key_id
from gatekey_server.domain.secrets import Digest
from gatekey_server.domain.specs import AccessMode, KeyKind
from gatekey_server.store.api_keys import parse_grants
from gatekey_server.store.database import Database
from gatekey_server.store.products import CompiledSpecs
from gatekey_server.store.queries import queries

_FACTS_SQL: str = queries.facts_by_digest.sql
_DIGESTS_SQL: str = queries.digests_by_key.sql


@dataclass(frozen=True, slots=True)
class Loaded:
    """Facts, and the revision that they are as of."""

    revision: int
    facts: Mapping[Digest, Fact]
    """By digest; a digest of no secret is left out."""
    server: datetime
    """When the database's server was started, by which it is told from others."""


async def load(database: Database, specs: CompiledSpecs, digests: Sequence[Digest]) -> Loaded:
    """Read the facts behind digests in one round trip."""
    known = specs.known()
    rows = await database.fetch(_FACTS_SQL, list(known), digests)
    facts = {
        Digest(row["digest"]): _to_fact(row, specs.policy(known, row["spec_digest"], row["spec"]))
        for row in rows
        if row["digest"] is not None
    }
    return Loaded(rows[0]["revision"], facts, rows[0]["server"])


async def digests(database: Database, key: ApiKeyName) -> tuple[Digest, ...]:
    """Read the digests of a key's secrets, the one that lives longest first; none where there is no such key."""
    key_uid = parse_key_id(key.api_key)
    if key_uid is None:
        return ()
    rows = await database.fetch(_DIGESTS_SQL, key.parent.product, key.parent.tenant, key_uid)
    return tuple(Digest(row["digest"]) for row in rows)


def _to_fact(row: asyncpg.Record, policy: Policy) -> Fact:
    role = sys.intern(row["owner_role"]) if row["owner_role"] else None
    owner = Owner(PrincipalKind(row["owner_kind"]), row["owner_id"], role) if row["owner_kind"] else None
    return Fact(
        policy=policy,
        # One text for all facts that share it.
        tenant=sys.intern(row["tenant_id"]),
        tenant_suspended=row["suspend_time"] is not None,
        tenant_deleted=row["delete_time"] is not None,
        key_id=format_key_id(row["key_uid"]),
        kind=KeyKind(row["kind"]),
        mode=AccessMode(row["mode"]) if row["mode"] else None,
        grants=_grants(row["grants"]),
        owner=owner,
        key_revoked=row["revoke_time"] is not None,
        key_disabled=row["disable_time"] is not None,
        uid=(row["tenant_uid"], row["key_uid"]),
        principal_uid=row["principal_uid"],
        was_used=row["was_used"],
        expire_time=min(filter(None, (row["expire_time"], row["secret_expire_time"])), default=None),
    )


# Many keys are given the same; their facts share it.
@lru_cache(maxsize=4096)
def _grants(text: str | None) -> GrantSet:
    return GrantSet.of(parse_grants(text))
