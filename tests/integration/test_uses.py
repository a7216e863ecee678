"""How last uses are written down, against a real PostgreSQL."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from gatekey_server.store import database as store_database
from gatekey_server.store.api_keys import record_uses
from gatekey_server.store.database import Database

from tests.support.databases import Databases, Sql

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOON = NOW + timedelta(seconds=1)
LATER = NOW + timedelta(seconds=2)

Uid = tuple[int, uuid.UUID]


@pytest.fixture
async def database_url(databases: Databases) -> str:
    """A database of its own, with a product, a tenant and ten keys that were never used."""
    url = await databases.create()
    connection = await asyncpg.connect(url)
    await connection.execute(
        """
        insert into product (product_id, spec, spec_digest, spec_version, built_in)
            values ('p', '{}', decode(repeat('00', 32), 'hex'), 1, false);
        insert into tenant (product_id, tenant_id, display_name) values ('p', 'a', '');
        insert into api_key (tenant_uid, key_uid, display_name, kind)
            select tenant_uid, gen_random_uuid(), 'k', 'PUBLISHABLE' from tenant, generate_series(1, 10);
        """
    )
    await connection.close()
    return url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database.connect(
        database_url, max_connections=8, statement_timeout_s=10, acquire_timeout_s=10
    ) as database:
        yield database


@pytest.fixture
async def keys(sql: Sql) -> list[Uid]:
    rows = await sql.fetch("select tenant_uid, key_uid from api_key order by key_uid")
    return [(row["tenant_uid"], row["key_uid"]) for row in rows]


async def times(sql: Sql) -> dict[Uid, datetime]:
    return {
        (row["tenant_uid"], row["key_uid"]): row["last_use_time"] for row in await sql.fetch("select * from key_usage")
    }


async def test_uses_of_keys_that_were_used_before_and_of_others_are_written(
    database: Database, sql: Sql, keys: list[Uid]
) -> None:
    await record_uses(database, dict.fromkeys(keys[:5], NOW))
    await record_uses(database, dict.fromkeys(keys[3:8], SOON))
    assert await times(sql) == {**dict.fromkeys(keys[:3], NOW), **dict.fromkeys(keys[3:8], SOON)}


async def test_a_use_that_is_told_late_replaces_no_later_one(database: Database, sql: Sql, keys: list[Uid]) -> None:
    await record_uses(database, {keys[0]: LATER})
    await record_uses(database, {keys[0]: SOON, keys[1]: SOON})
    assert await times(sql) == {keys[0]: LATER, keys[1]: SOON}


async def test_a_key_that_is_no_more_keeps_no_other_from_being_written(
    database: Database, sql: Sql, keys: list[Uid]
) -> None:
    await sql.execute("delete from api_key where key_uid = $1", keys[0][1])
    await record_uses(database, dict.fromkeys(keys, NOW))
    assert await times(sql) == dict.fromkeys(keys[1:], NOW)


async def test_a_use_that_somebody_else_is_writing_is_written_after_it(
    database: Database, sql: Sql, keys: list[Uid]
) -> None:
    await record_uses(database, dict.fromkeys(keys, NOW))
    async with sql.transaction():
        await sql.execute("update key_usage set last_use_time = $1 where key_uid = $2", SOON, keys[0][1])
        writing = asyncio.create_task(record_uses(database, dict.fromkeys(keys, LATER)))
        # The others do not wait for that one.
        async with asyncio.timeout(10):
            while (await times(sql))[keys[1]] != LATER:
                await asyncio.sleep(0.01)
        assert not writing.done()
    await writing
    assert await times(sql) == dict.fromkeys(keys, LATER)


async def test_neither_many_who_write_nor_a_deletion_meet_in_a_deadlock(
    database: Database, sql: Sql, keys: list[Uid], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A deadlock would end in an error, instead of being tried again.
    monkeypatch.setattr(store_database, "TRANSACTION_ATTEMPTS", 1)
    chance = random.Random(1)  # noqa: S311 - a repeatable sequence is what is wanted
    newest: dict[Uid, datetime] = {}
    for turn in range(100):
        now = NOW + timedelta(seconds=turn)
        written = [dict.fromkeys(chance.sample(keys, 8), now) for _ in range(4)]
        await asyncio.gather(*(record_uses(database, uses) for uses in written))
        for uses in written:
            newest.update(uses)
        assert await times(sql) == newest
    # Backwards, against the order of the batches.
    async with sql.transaction():
        writing = [asyncio.create_task(record_uses(database, dict.fromkeys(keys, LATER))) for _ in range(4)]
        for _, key_uid in reversed(keys):
            await sql.execute("delete from api_key where key_uid = $1", key_uid)
        await asyncio.gather(*writing)
    assert await times(sql) == {}
