"""Poolers: one that gives each connection a session works, one that shares sessions is told so."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from gatekey.core.secrets import new_secret
from gatekey.v1 import api_key_service_pb2
from gatekey_server.store import sessions
from gatekey_server.store.database import SESSION, Primary
from gatekey_server.store.sessions import PoolerError

from tests.integration.test_service import run_async
from tests.support.databases import Databases
from tests.support.pooler import PGBOUNCER, pgbouncer
from tests.support.server import PEPPERS, Client, ServerProcess, read_example

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="there is no pgbouncer: apt-get install pgbouncer")

SHARED = "the database's URL leads to a pooler that shares sessions"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "migrate"])
@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_a_pooler_that_shares_sessions_is_detected(
    databases: Databases, tmp_path: Path, mode: str, command: str
) -> None:
    url = await databases.create(template="template1")
    async with pgbouncer(tmp_path, url, mode) as pooled:
        result = await run_async(command, GATEKEY_DATABASE_URL=pooled, GATEKEY_PEPPERS=PEPPERS)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {SHARED}")
    assert len(result.stderr.splitlines()) == 1
    # Nothing was done, and nothing was left behind in the shared sessions.
    connection = await asyncpg.connect(url)
    assert not await connection.fetchval("select count(*) from pg_tables where schemaname = 'public'")
    await connection.close()


@asynccontextmanager
async def load(url: str, clients: int) -> AsyncIterator[None]:
    """Clients of the same pooler that have a transaction most of the time."""

    async def keep_busy() -> None:
        connection = await asyncpg.connect(url, statement_cache_size=0)
        try:
            while True:
                await connection.execute("begin; select pg_sleep(0.003); commit")
        finally:
            connection.terminate()

    tasks = [asyncio.create_task(keep_busy()) for _ in range(clients)]
    await asyncio.sleep(0.1)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3, 20])
@pytest.mark.parametrize("more", ["", "server_round_robin = 1"])
async def test_detection_does_not_depend_on_what_others_do(
    databases: Databases, tmp_path: Path, size: int, more: str
) -> None:
    url = await databases.create(template="template1")
    async with pgbouncer(tmp_path, url, "transaction", size=size, more=more) as pooled:
        for clients in (0, 5):
            async with load(pooled, clients):
                for _ in range(5):
                    with pytest.raises(PoolerError):
                        await sessions.check(Primary(pooled), 5)


@pytest.mark.slow
async def test_a_pooler_of_sessions_works(databases: Databases, tmp_path: Path) -> None:
    url, token = await databases.create(template="template1"), new_secret("gk_")
    async with pgbouncer(tmp_path, url, "session", size=40) as pooled:
        variables = {"GATEKEY_DATABASE_URL": pooled, "GATEKEY_PEPPERS": PEPPERS, "GATEKEY_ROOT_TOKEN": token}
        migrated = await run_async("migrate", **variables)
        assert (migrated.returncode, migrated.stderr) == (0, "")
        server = await ServerProcess.start(variables)
        client = Client(server.address, token)
        await client.apply(read_example("heyoo"))
        tenant = await client.create_tenant("heyoo", "acme")
        key = await client.create_key(tenant, await client.add_member(tenant, "owner", "owner"))
        assert await client.verdict(key.secret, "campaigns", "read") == "ALLOWED"
        await client.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=key.api_key.name), timeout=10)
        assert await client.verdict(key.secret, "campaigns", "read") == "KEY_REVOKED"
        await client.close()
        assert await server.stop() == 0
        # PgBouncer neither knows these settings nor hands them on.
        connection = await Primary(pooled).connect(timeout=5, server_settings=SESSION)
        assert {name: await connection.fetchval(f"show {name}") for name in SESSION} == SESSION
        await connection.close()
