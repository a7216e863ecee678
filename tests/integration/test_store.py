"""The schema and the named queries, against a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from gatekey.core import builtin
from gatekey.core.errors import Unavailable
from gatekey_server.store import products, schema
from gatekey_server.store.database import IDLE_IN_TRANSACTION_S, TRANSACTION_ATTEMPTS, Connection, Database
from gatekey_server.store.queries import queries

from tests.support.databases import Databases


@pytest.fixture
async def connection(databases: Databases) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection to a fresh database."""
    opened = await asyncpg.connect(await databases.create())
    yield opened
    await opened.close()


async def test_every_query_can_be_prepared_and_says_why(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    for name in queries.available_queries:
        query = getattr(queries, name)
        await connection.prepare(query.sql)
        assert query.__doc__, f"{name} has no line that says why"
        assert "*" not in query.sql.replace("count(*)", ""), f"{name} does not enumerate its columns"


async def test_every_foreign_key_has_an_index_that_finds_the_children(
    connection: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    """Without one, deleting a parent reads the whole table of its children."""
    missing = await connection.fetch(
        """
        select conrelid::regclass::text as child, conname from pg_constraint
        where contype = 'f' and confdeltype = 'c' and not exists (
            select 1 from pg_index
            where indrelid = conrelid
                and (string_to_array(indkey::text, ' ')::smallint[])[1:cardinality(conkey)] = conkey
        )
        """
    )
    assert not missing


async def test_rows_below_a_tenant_carry_it_in_their_keys(
    connection: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    rows = await connection.fetch(
        """
        select conrelid::regclass::text as child, array_agg(distinct attname::text) as columns
        from pg_constraint join pg_attribute on attrelid = conrelid and attnum = any(conkey)
        where contype = 'p' and connamespace = 'public'::regnamespace group by conrelid
        """
    )
    keys = {row["child"]: row["columns"] for row in rows}
    for table in ("principal", "api_key", "secret"):
        assert "tenant_uid" in keys[table]


async def test_a_key_has_at_most_two_secrets(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    await connection.execute(
        """
        insert into pepper values (1, decode(repeat('00', 16), 'hex'));
        insert into product (product_id, spec, spec_digest, spec_version, built_in)
            values ('p', '{}', decode(repeat('00', 32), 'hex'), 1, false);
        insert into tenant (product_id, tenant_id, display_name) values ('p', 't', '');
        insert into api_key (tenant_uid, key_uid, display_name, kind)
            select tenant_uid, '00000000-0000-0000-0000-000000000000', 'k', 'PUBLISHABLE' from tenant;
        """
    )
    add = """
        insert into secret (tenant_uid, key_uid, slot, digest, pepper_version, hint)
        select tenant_uid, key_uid, $1, decode(repeat($2, 32), 'hex'), 1, 'h' from api_key
    """
    await connection.execute(add, 1, "01")
    await connection.execute(add, 2, "02")
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute(add, 2, "03")
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute(add, 3, "03")
    await connection.execute("delete from secret where slot = 2")
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute(add, 2, "01")


async def test_conflicting_transactions_are_tried_again_and_then_given_up(databases: Databases) -> None:
    url = await databases.create()
    attempts = 0

    async def work(_: Connection) -> str:
        nonlocal attempts
        attempts += 1
        if attempts < TRANSACTION_ATTEMPTS:
            raise asyncpg.DeadlockDetectedError
        return "done"

    async def always(_: Connection) -> None:
        raise asyncpg.SerializationError

    async with Database.connect(url, max_connections=2, statement_timeout_s=5, acquire_timeout_s=1) as database:
        assert await database.transaction(work) == "done"
        with pytest.raises(Unavailable) as raised:
            await database.transaction(always)
        assert raised.value.reason == "TRANSACTION_CONFLICT"


async def test_a_stopped_process_does_not_hold_up_the_others_for_long(databases: Databases) -> None:
    """Between two statements of a transaction: the locks that it holds are given up."""
    url = await databases.create()
    async with Database.connect(url, max_connections=2, statement_timeout_s=5, acquire_timeout_s=1) as database:

        async def stop_in_the_middle(connection: Connection) -> None:
            await connection.execute("update revision set current = current")
            await asyncio.sleep(IDLE_IN_TRANSACTION_S * 1.5)
            await connection.execute("update revision set current = current")

        stopped = asyncio.create_task(database.transaction(stop_in_the_middle))
        await asyncio.sleep(0.2)
        other = await asyncpg.connect(url)
        # Waits for the lock; would wait for as long as the other process is stopped.
        await other.execute("update revision set current = current", timeout=IDLE_IN_TRANSACTION_S * 2)
        await other.close()
        with pytest.raises(Unavailable):
            await stopped


async def test_an_older_release_leaves_a_newer_built_in_spec_alone(databases: Databases) -> None:
    from gatekey.core.secrets import Keyring
    from gatekey_server.commands import bootstrap

    url = await databases.create()
    keyring = Keyring({1: b"0" * 32})
    async with Database.connect(url, max_connections=2, statement_timeout_s=5, acquire_timeout_s=1) as database:
        assert await bootstrap.prepare(database, keyring) is True
        assert await bootstrap.prepare(database, keyring) is False
        async with database.connection() as connection:
            await connection.execute("update product set spec_version = spec_version + 1")
        await bootstrap.prepare(database, keyring)
        async with database.connection() as connection:
            product = await products.get(connection, builtin.PRODUCT)
        assert product is not None
        assert product.spec_version == builtin.SPEC_VERSION + 1


async def test_the_schema_is_known_by_its_version(databases: Databases) -> None:
    url = await databases.create()
    async with Database.connect(url, max_connections=2, statement_timeout_s=5, acquire_timeout_s=1) as database:
        assert await schema.current_version(database) == schema.newest_version()
    empty = await databases.create(template="template1")
    async with Database.connect(empty, max_connections=2, statement_timeout_s=5, acquire_timeout_s=1) as database:
        assert await schema.current_version(database) is None
