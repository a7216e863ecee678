"""Which of several databases is used, and which one's answers count."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from gatekey.core import clock
from gatekey.core.errors import Unavailable
from gatekey.core.invalidation_index import InvalidationIndex
from gatekey.core.secrets import Digest
from gatekey_server.freshness.lease import PrimaryLease
from gatekey_server.freshness.snapshot_source import SnapshotSource, VersionedSnapshot
from gatekey_server.store.database import Database

from tests.support.databases import Databases

SECRET = (Digest(bytes(32)),)


@pytest.fixture
async def silent_port() -> AsyncIterator[int]:
    """A port where connections are accepted and nothing is said."""
    async with await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0) as server:
        writers: list[asyncio.StreamWriter] = []
        yield server.sockets[0].getsockname()[1]
        for writer in writers:
            writer.close()


async def test_a_host_that_does_not_answer_leaves_time_for_the_next(databases: Databases, silent_port: int) -> None:
    url = await databases.create()
    url = url.replace("host=", "host=127.0.0.1,").replace("port=", f"port={silent_port},")
    async with Database.connect(url, max_connections=2, statement_timeout_s=5, acquire_timeout_s=2) as database:
        await database.fetch("select 1")


async def test_only_the_server_that_renewed_the_lease_is_believed(databases: Databases) -> None:
    async with Database.connect(
        await databases.create(), max_connections=2, statement_timeout_s=5, acquire_timeout_s=5
    ) as database:
        lease = PrimaryLease()
        source = SnapshotSource(database, InvalidationIndex(), lease, max_entries=100, max_bytes=10**6)
        lease.fail_waiters()
        assert isinstance(await source.get(SECRET), Unavailable)
        assert source.counts.loads == 0
        lease.renew(clock.now(), datetime(2026, 1, 1, tzinfo=UTC))
        assert isinstance(await source.get(SECRET), Unavailable)
        (row,) = await database.fetch("select pg_postmaster_start_time() as server")
        lease.renew(clock.now(), row["server"])
        assert await source.get(SECRET) == VersionedSnapshot(None, 0)
