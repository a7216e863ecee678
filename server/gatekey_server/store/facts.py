"""The facts behind secrets."""

from collections.abc import Sequence

import asyncpg

from gatekey_server.domain.decisions import Fact, Owner, PrincipalKind
from gatekey_server.domain.grants import GrantSet
from gatekey_server.domain.names import format_key_id
from gatekey_server.domain.secrets import Digest
from gatekey_server.domain.specs import AccessMode, KeyKind
from gatekey_server.store.api_keys import parse_grants
from gatekey_server.store.database import Database
from gatekey_server.store.products import CompiledSpecs
from gatekey_server.store.queries import queries

_FACTS_SQL: str = queries.facts_by_digest.sql


async def load(database: Database, specs: CompiledSpecs, digests: Sequence[Digest]) -> dict[Digest, Fact]:
    """Read the facts behind digests in one round trip; digests of no secret are left out."""
    rows = await database.fetch(_FACTS_SQL, specs.digests(), digests)
    return {row["digest"]: _to_fact(specs, row) for row in rows}


def _to_fact(specs: CompiledSpecs, row: asyncpg.Record) -> Fact:
    owner = Owner(PrincipalKind(row["owner_kind"]), row["owner_id"], row["owner_role"]) if row["owner_kind"] else None
    return Fact(
        policy=specs.policy(row["spec_digest"], row["spec"]),
        tenant=row["tenant_id"],
        tenant_suspended=row["suspend_time"] is not None,
        tenant_deleted=row["delete_time"] is not None,
        key_id=format_key_id(row["key_uid"]),
        kind=KeyKind(row["kind"]),
        mode=AccessMode(row["mode"]) if row["mode"] else None,
        grants=GrantSet.of(parse_grants(row["grants"])),
        owner=owner,
        key_revoked=row["revoke_time"] is not None,
        key_disabled=row["disable_time"] is not None,
        expire_time=min(filter(None, (row["expire_time"], row["secret_expire_time"])), default=None),
    )
