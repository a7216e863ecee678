"""How PostgreSQL carries out the named queries.

Where there is much: 200,000 keys, half of them in one tenant. And where there is nothing yet: the plans that a new
installation makes are kept while its tables grow.
"""

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import asyncpg
import pytest
from gatekey_server.store.database import SESSION
from gatekey_server.store.queries import queries

from tests.support.databases import Databases

KEYS = 200_000
LARGE = frozenset({"tenant", "principal", "api_key", "secret", "key_usage", "change"})

NAMES = [name for name in queries.available_queries if not name.endswith("_cursor")]

# Queries that do read a whole table, and why that is right.
_PRODUCT = "counts what a whole product holds, for a change of its spec or its deletion"
WHOLE: Mapping[str, str] = {
    "key_count_by_permissions": _PRODUCT,
    "machine_user_count": _PRODUCT,
    "member_count_by_role": _PRODUCT,
    "product_count_contents": _PRODUCT,
    "tenant_count": _PRODUCT,
    "tenant_mark_all_deleted": "changes all tenants of a product",
    "tenant_next_deleted": "by the upkeep, every few minutes, of a table with a row for each tenant",
    "changes_purge": "of a table whose size is bounded by this very query",
}

# One row, and one for each process.
ALWAYS_SMALL = frozenset({"revision", "process"})

FILL = f"""
set session_replication_role = replica;
insert into product (product_id, spec, spec_digest, spec_version, built_in)
values ('heyoo', '{{}}', sha256('x'), 1, false);
insert into tenant (product_id, tenant_id, display_name) select 'heyoo', 't' || n, 'T' from generate_series(0, 10000) n;
insert into principal (tenant_uid, kind, principal_id, role, display_name)
select tenant_uid, 'MEMBER', 'm' || n, 'owner', '' from tenant, generate_series(0, 9) n order by tenant_uid;
insert into api_key (tenant_uid, key_uid, principal_uid, display_name, kind, mode)
select tenant_uid, gen_random_uuid(), principal_uid, 'Key', 'SECRET', 'ALL'
from generate_series(1, {KEYS}) n
join principal on principal_uid = case when n % 2 = 0 then 1 + n % 10 else 1 + n % 100000 end;
insert into secret (tenant_uid, key_uid, slot, digest, pepper_version, hint)
select tenant_uid, key_uid, 1, sha256(key_uid::text::bytea), 1, 'heyoo_0000' from api_key;
insert into key_usage (tenant_uid, key_uid, last_use_time) select tenant_uid, key_uid, now() from api_key;
insert into change (transaction, product_id, tenant_uid, key_uid, revision, stamp)
select '1', null, tenant_uid, key_uid, row_number() over (), gen_random_uuid() from api_key limit 20000;
set session_replication_role = origin;
analyze;
"""


@pytest.fixture(scope="module")
async def large(databases: Databases) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection to a database that holds much."""
    connection = await asyncpg.connect(await databases.create())
    await connection.execute(FILL)
    yield connection
    await connection.close()


@pytest.fixture(scope="module")
async def empty(databases: Databases) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection as the server makes it, to a database that holds nothing, and knows it."""
    connection = await asyncpg.connect(await databases.create(), server_settings=dict(SESSION))
    await connection.execute("analyze")
    yield connection
    await connection.close()


async def kept_plan(connection: "asyncpg.Connection[asyncpg.Record]", name: str) -> Mapping[str, Any]:
    """The plan that is kept for a prepared query, whatever its parameters are."""
    sql = getattr(queries, name).sql
    parameters = len((await connection.prepare(sql)).get_parameters())
    await connection.execute(f"prepare {name} as {sql}")
    arguments = f"({', '.join(['null'] * parameters)})" if parameters else ""
    explained = await connection.fetchval(f"explain (format json) execute {name} {arguments}")
    plan: Mapping[str, Any] = json.loads(explained)[0]["Plan"]
    return plan


def scans(plan: Mapping[str, Any]) -> Iterator[str]:
    """The tables that a plan reads from one end to the other."""
    if plan["Node Type"] == "Seq Scan":
        yield plan["Relation Name"]
    for part in plan.get("Plans", ()):
        yield from scans(part)


async def test_the_largest_tenant_is_large(large: "asyncpg.Connection[asyncpg.Record]") -> None:
    assert await large.fetchval("select count(*) from secret") == KEYS
    counts = await large.fetch("select count(*) from api_key group by tenant_uid order by 1 desc limit 1")
    assert counts[0][0] >= KEYS // 2


@pytest.mark.parametrize("name", NAMES)
async def test_no_query_reads_a_large_table_from_end_to_end(
    large: "asyncpg.Connection[asyncpg.Record]", name: str
) -> None:
    await large.execute("set plan_cache_mode = force_generic_plan")
    whole = LARGE.intersection(scans(await kept_plan(large, name)))
    assert bool(whole) == (name in WHOLE), whole


@pytest.mark.parametrize("name", NAMES)
async def test_no_plan_that_was_made_for_empty_tables_reads_one_from_end_to_end(
    empty: "asyncpg.Connection[asyncpg.Record]", name: str
) -> None:
    assert ALWAYS_SMALL.issuperset(scans(await kept_plan(empty, name)))
