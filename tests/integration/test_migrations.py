"""What a migration waits for: it says whom, gives up in time, and leaves no lock behind."""

import asyncio
import os
import re
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from gatekey.core.errors import Unavailable
from gatekey_server.store import schema
from gatekey_server.store.lock import LockTimeoutError, MigrationLock
from gatekey_server.store.schema import SchemaError

from tests.integration.test_operators import peer
from tests.integration.test_service import run_async
from tests.support.databases import Databases, Sql
from tests.support.pooler import PGBOUNCER, pgbouncer
from tests.support.server import GATEKEY, PEPPERS, environment

LOCK = schema._ADVISORY_LOCK
HELD = """
    select pid from pg_locks join pg_database on pg_database.oid = database
    where locktype = 'advisory' and granted and datname = current_database()
"""


@pytest.fixture
async def url(databases: Databases) -> str:
    """A database without a schema."""
    return await databases.create(template="template1")


@pytest.fixture
async def other(url: str) -> AsyncIterator[Sql]:
    """Somebody else's session."""
    connection = await asyncpg.connect(url, server_settings={"application_name": "left-behind"})
    yield connection
    connection.terminate()


@asynccontextmanager
async def hold(keeper_url: str, url: str) -> AsyncIterator[None]:
    """Hold the lock, by a connection to the one URL."""
    runner, watcher = await asyncpg.connect(keeper_url, statement_cache_size=0), await asyncpg.connect(url)
    try:
        async with MigrationLock(LOCK, runner, watcher, print).held(5):
            yield
    finally:
        for connection in (runner, watcher):
            connection.terminate()


async def migrate(url: str, *arguments: str) -> asyncio.subprocess.Process:
    """Begin a migration."""
    return await asyncio.create_subprocess_exec(
        *(*GATEKEY, "migrate", *arguments),
        env=environment(GATEKEY_DATABASE_URL=url, GATEKEY_PEPPERS=PEPPERS),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.slow
async def test_who_holds_the_lock_is_told_and_it_is_given_up(url: str, other: Sql) -> None:
    await other.execute(f"select pg_advisory_lock({LOCK})")
    pid = await other.fetchval("select pg_backend_pid()")
    result = await run_async("migrate", "--lock-timeout", "0.5", GATEKEY_DATABASE_URL=url, GATEKEY_PEPPERS=PEPPERS)
    assert result.returncode == 1
    note, error = result.stderr.splitlines()
    holder = f"process {pid} (left-behind, role gatekey, from a local socket, connected since "
    assert note.startswith(f"note: waiting up to 0.5 s for another migration to end: {holder}")
    assert error.startswith("error: gave up after 0.5 s of waiting for the lock of migrations, ")
    assert holder in error
    assert "idle since " in error
    assert f"`select pg_terminate_backend({pid})` ends it" in error
    by_variable = await run_async(
        "migrate", GATEKEY_DATABASE_URL=url, GATEKEY_PEPPERS=PEPPERS, GATEKEY_MIGRATE_LOCK_TIMEOUT_S="0"
    )
    assert by_variable.returncode == 1
    assert "gave up after 0 s" in by_variable.stderr


@pytest.mark.slow
async def test_a_migration_goes_on_once_the_other_one_has_ended(url: str, other: Sql) -> None:
    # As previous releases lock: for the session.
    await other.execute(f"select pg_advisory_lock({LOCK})")
    processes = [await migrate(url) for _ in range(2)]
    for process in processes:
        assert process.stderr is not None
        assert (await process.stderr.readline()).startswith(b"note: waiting up to 60 s for another migration to end")
    await other.execute(f"select pg_advisory_unlock({LOCK})")
    for process in processes:
        output, _ = await process.communicate()
        assert process.returncode == 0
        assert schema.newest_version() in output.decode()
    assert await other.fetchval(HELD) is None


async def test_a_previous_release_waits_for_a_migration(url: str, other: Sql) -> None:
    async with asyncio.timeout(10), hold(url, url):
        assert not await other.fetchval(f"select pg_try_advisory_lock({LOCK})")
    assert await other.fetchval(f"select pg_try_advisory_lock({LOCK})")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_a_migration_that_is_ended_leaves_no_lock(url: str, other: Sql, number: signal.Signals) -> None:
    await schema.migrate(url, version="0001")
    await other.execute("begin; lock table tenant in access share mode")
    process = await migrate(url)
    assert process.stderr is not None
    pid = await other.fetchval("select pg_backend_pid()")
    line = (await process.stderr.readline()).decode()
    assert line.startswith(f"note: the migration waits for process {pid} (left-behind, ")
    process.send_signal(number)
    await process.wait()
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    await other.execute("rollback")
    async with asyncio.timeout(10):
        while await other.fetchval(HELD):
            await asyncio.sleep(0.02)
    await schema.migrate(url)


async def test_a_lock_that_is_not_to_be_had_names_its_holder(
    url: str, other: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_LOCK_TIMEOUT_S", 1)
    await schema.migrate(url, version="0001")
    await other.execute("begin; lock table tenant in access share mode")
    pid = await other.fetchval("select pg_backend_pid()")
    told: list[str] = []
    with pytest.raises(LockTimeoutError, match=rf"this session holds: process {pid} \(left-behind.*Run it again"):
        await schema.migrate(url, tell=told.append)
    assert len(told) == 1
    assert told[0].startswith(f"the migration waits for process {pid} (left-behind, role gatekey")
    await other.execute("rollback")
    await schema.migrate(url)


async def test_a_migration_ends_with_its_lock(url: str, other: Sql) -> None:
    await schema.migrate(url, version="0001")
    await other.execute("begin; lock table tenant in access share mode")
    waiting = asyncio.Event()
    migration = asyncio.create_task(schema.migrate(url, tell=lambda _: waiting.set()))
    await waiting.wait()
    await other.execute("select pg_terminate_backend($1)", await other.fetchval(HELD))
    with pytest.raises(LockTimeoutError, match="the connection that holds the lock of migrations broke"):
        await migration


@pytest.mark.skipif(PGBOUNCER is None, reason="there is no pgbouncer: apt-get install pgbouncer")
async def test_a_pooler_cannot_keep_the_lock(url: str, other: Sql, tmp_path: Path) -> None:
    async with pgbouncer(tmp_path, url, "transaction") as pooled:
        script = (
            "import asyncio, sys\n"
            "from tests.integration.test_migrations import hold\n"
            "async def main():\n"
            "    async with hold(*sys.argv[1:]):\n"
            "        print('held', flush=True)\n"
            "        await asyncio.sleep(60)\n"
            "asyncio.run(main())\n"
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script, pooled, url), env=os.environ, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"held\n"
        assert await other.fetchval(HELD)
        process.kill()
        await process.wait()
        async with asyncio.timeout(10):
            while await other.fetchval(HELD):
                await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_a_schema_of_a_newer_release_is_left_as_it_is(url: str, other: Sql) -> None:
    await schema.migrate(url)
    await other.execute("update schema_version set version_num = '9999'")
    result = await run_async("migrate", GATEKEY_DATABASE_URL=url, GATEKEY_PEPPERS=PEPPERS)
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "The schema is at version 9999\n")


async def test_tables_of_somebody_else_are_in_the_way(url: str, other: Sql) -> None:
    await other.execute("create table tenant (x int)")
    with pytest.raises(SchemaError, match='is in the way that is not Gatekey\'s: relation "tenant" already exists'):
        await schema.migrate(url)


@pytest.mark.slow
async def test_a_database_that_cannot_store_every_text_is_refused(url: str, other: Sql) -> None:
    name = f"latin_{uuid.uuid4().hex[:8]}"
    await other.execute(f"create database {name} encoding 'LATIN1' locale 'C' template template0")
    latin = re.sub(r"/test_\d+\?", f"/{name}?", url)
    for command in ("serve", "migrate"):
        result = await run_async(command, GATEKEY_DATABASE_URL=latin, GATEKEY_PEPPERS=PEPPERS)
        assert result.returncode == 1
        assert result.stderr.startswith("error: the database's encoding is LATIN1: ")


async def test_a_wait_for_a_silent_database_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_SLOW_S", 0.05)
    told: list[str] = []
    async with peer(lambda _, __: None) as silent:
        with pytest.raises(Unavailable):
            await schema.migrate(f"{silent}?connect_timeout=1", tell=told.append)
    assert told == ["the database does not respond yet; giving up after 60 s"]
