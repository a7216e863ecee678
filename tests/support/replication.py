"""A primary with a synchronous standby, which can take its place."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
from gatekey_server.store import schema
from gatekey_server.store.embedded import DATABASE, SUPERUSER, EmbeddedPostgres, find_binaries

_SETTINGS = {"fsync": "off", "full_page_writes": "off", "wal_retrieve_retry_interval": "100ms"}
_TIMEOUT_S = 30


def bin_dir() -> Path:
    """Where PostgreSQL's programs are."""
    given = os.environ.get("GATEKEY_TEST_POSTGRES_BIN")
    return Path(given) if given else find_binaries()


def url(*servers: EmbeddedPostgres) -> str:
    """One URL for several servers, in this order."""
    hosts = ",".join(_host(server) for server in servers)
    return f"postgresql://{SUPERUSER}@/{DATABASE}?host={hosts}&port=5432"


class Pair:
    """Two PostgreSQL servers. Commits of the first wait for the second, which replays them, until it is promoted.

    A former primary is left alone: it goes on, unless it was killed, and its commits wait for ever.
    """

    def __init__(self, primary: EmbeddedPostgres, standby: EmbeddedPostgres) -> None:
        self.primary = primary
        self.standby = standby

    @classmethod
    @asynccontextmanager
    async def start(cls, directory: Path) -> AsyncIterator["Pair"]:
        """Start both, with Gatekey's schema. In the main thread, whose event loop is blocked meanwhile."""
        with ExitStack() as stack:
            servers = [
                EmbeddedPostgres(directory / name, bin_dir=bin_dir(), settings=_SETTINGS) for name in ("one", "two")
            ]
            primary = stack.enter_context(servers[0])
            await schema.migrate(primary.dsn())
            _copy(primary, directory / "one" / "postgres", directory / "two")
            standby = stack.enter_context(servers[1])
            await _make_synchronous(primary)
            yield cls(primary, standby)

    async def promote(self) -> None:
        """Make the standby a primary."""
        await _fetch(self.standby, "select pg_promote()")

    def kill_primary(self) -> None:
        """Kill the primary with all its processes, without warning."""
        pid = self.primary.pid
        assert pid is not None
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in (pid, *map(int, children)):
            os.kill(process, signal.SIGKILL)
        self.primary.stop()


def _host(server: EmbeddedPostgres) -> str:
    return parse_qs(urlsplit(server.dsn()).query)["host"][0]


def _copy(primary: EmbeddedPostgres, cluster: Path, directory: Path) -> None:
    directory.mkdir(mode=0o711)
    copy = directory / "postgres"
    subprocess.run(
        [
            *(bin_dir() / "pg_basebackup", f"--pgdata={copy}", "--write-recovery-conf", "--checkpoint=fast"),
            *("--no-sync", f"--host={_host(primary)}", "--port=5432", f"--username={SUPERUSER}"),
        ],
        check=True,
        timeout=_TIMEOUT_S,
    )
    owner = cluster.stat()
    for path in (copy, *copy.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    shutil.copymode(cluster, copy)


async def _make_synchronous(primary: EmbeddedPostgres) -> None:
    connection = await asyncpg.connect(primary.dsn())
    try:
        # In this server's own configuration: the copy, once it is promoted, waits for nobody.
        await connection.execute("alter system set synchronous_standby_names = '*'")
        await connection.execute("select pg_reload_conf()")
        async with asyncio.timeout(_TIMEOUT_S):
            while not await connection.fetchval(
                "select exists (select from pg_stat_replication where sync_state = 'sync')"
            ):
                await asyncio.sleep(0.01)
    finally:
        await connection.close()


async def _fetch(server: EmbeddedPostgres, sql: str) -> object:
    connection = await asyncpg.connect(server.dsn())
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()
