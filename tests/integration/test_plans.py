"""How PostgreSQL carries out the named queries.

Where there is much: 200,000 keys, half of them in one tenant. And where there is nothing yet: the plans that a new
installation makes are kept while its tables grow.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import asyncpg
import pytest
from gatekey_server.store import database
from gatekey_server.store.database import SESSION
from gatekey_server.store.queries import queries

from tests.support.databases import Databases

KEYS = 200_000
LARGE = frozenset({"tenant", "principal", "api_key", "secret", "key_usage", "change"})

NAMES = [name for name in queries.available_queries if not name.endswith("_cursor")]

# Queries that do read a whole table, and why that is right.
WHOLE: Mapping[str, str] = {
    "product_count_contents": "counts what a whole product holds, as far as a limit, for its deletion",
    "tenant_count": "as far as a limit",
}

# Indexes of the few rows that something is to be done about.
PARTIAL = frozenset({"principal_by_remove_time", "principal_removed", "tenant_by_purge_time", "product_by_delete_time"})

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


def scans(plan: Mapping[str, Any], *, by_index: bool = False) -> Iterator[str]:
    """The tables that a plan reads from one end to the other; also those `by_index`, which has no condition then."""
    without_condition = (
        by_index
        and plan["Node Type"] in {"Index Scan", "Index Only Scan"}
        and "Index Cond" not in plan
        and plan["Index Name"] not in PARTIAL
    )
    if plan["Node Type"] == "Seq Scan" or without_condition:
        yield plan["Relation Name"]
    for part in plan.get("Plans", ()):
        yield from scans(part, by_index=by_index)


@pytest.mark.slow
async def test_the_largest_tenant_is_large(large: "asyncpg.Connection[asyncpg.Record]") -> None:
    assert await large.fetchval("select count(*) from secret") == KEYS
    counts = await large.fetch("select count(*) from api_key group by tenant_uid order by 1 desc limit 1")
    assert counts[0][0] >= KEYS // 2


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
async def test_no_query_reads_a_large_table_from_end_to_end(
    large: "asyncpg.Connection[asyncpg.Record]", name: str
) -> None:
    await large.execute("set plan_cache_mode = force_generic_plan")
    whole = LARGE.intersection(scans(await kept_plan(large, name), by_index=True))
    assert bool(whole) == (name in WHOLE), whole


@pytest.mark.parametrize("name", NAMES)
async def test_no_plan_that_was_made_for_empty_tables_reads_one_from_end_to_end(
    empty: "asyncpg.Connection[asyncpg.Record]", name: str
) -> None:
    assert ALWAYS_SMALL.issuperset(scans(await kept_plan(empty, name)))


FILL_ONE = FILL.replace("generate_series(0, 10000)", "generate_series(0, 0)").replace(str(KEYS), "20000")


@pytest.fixture(scope="module")
async def grown(databases: Databases) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection as the server makes it, to a database into which much has come of which there are no statistics."""
    connection = await asyncpg.connect(await databases.create(), server_settings=dict(SESSION))
    for table in LARGE:
        await connection.execute(f"alter table {table} set (autovacuum_enabled = off)")
    await connection.execute(FILL_ONE.replace("analyze;", ""))
    yield connection
    await connection.close()


@pytest.mark.parametrize("name", NAMES)
async def test_no_query_reads_a_table_of_which_little_is_known_from_end_to_end(
    grown: "asyncpg.Connection[asyncpg.Record]", name: str
) -> None:
    assert await grown.fetchval("select max(reltuples) from pg_class where relname = any($1)", list(LARGE)) == -1
    whole = (LARGE | {"product"}).intersection(scans(await kept_plan(grown, name), by_index=True))
    assert not whole or name in WHOLE


async def test_a_plan_is_soon_made_again(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_MAX_PLAN_AGE_S", 0.2)
    connection = await database.Primary(await databases.create()).connect(timeout=10, server_settings=SESSION)
    made = []
    for wait_s in (0, 0, 0.5):
        await asyncio.sleep(wait_s)
        await connection.fetchval("select 1 where $1", True)
        made += await connection.fetch("select prepare_time from pg_prepared_statements where statement like '% $1'")
    await connection.close()
    assert made[0] == made[1] != made[2]


@pytest.fixture(scope="module")
async def one(databases: Databases) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection as the server makes it, to a database in which one tenant has everything."""
    connection = await asyncpg.connect(await databases.create(), server_settings=dict(SESSION))
    await connection.execute(FILL_ONE.replace("n % 2 = 0", "true"))
    yield connection
    await connection.close()


@pytest.mark.parametrize("name", [name for name in NAMES if "purge" in name])
async def test_a_purge_in_the_largest_tenant_reads_no_more_than_it_removes(
    one: "asyncpg.Connection[asyncpg.Record]", name: str
) -> None:
    assert await one.fetchval("select count(*) from api_key") == 20000
    # Where there is little to be done, an index is read whole: that of the changes is what is purged.
    whole = LARGE.intersection(scans(await kept_plan(one, name), by_index=True)) - {"change"}
    assert not whole
