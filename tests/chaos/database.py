"""The database as a process of its own, with a proxy before it for every server: `python -m tests.chaos.database`.

PostgreSQL must be started from a main thread, which is blocked meanwhile; the proxies go on in another.
"""

import asyncio
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, urlsplit

import asyncpg
from gatekey_server.store import schema
from gatekey_server.store.embedded import DATABASE, SUPERUSER, EmbeddedPostgres

from tests.chaos.proxy import Loss, Proxy

_START_TIMEOUT_S = 60
_COMMAND_TIMEOUT_S = 60

# What a killed server had handed to the kernel is not lost with it.
_SETTINGS = {"fsync": "off"}


class Database:
    """A handle of that process."""

    def __init__(self, process: asyncio.subprocess.Process, directory: Path) -> None:
        self._process = process
        self._directory = directory
        self._one_at_a_time = asyncio.Lock()

    @classmethod
    async def start(cls, directory: Path, proxies: int) -> Self:
        """Start the process and wait until the database is there, with its schema."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.chaos.database", str(directory), str(proxies)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        database = cls(process, directory)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await database._answer()
        except BaseException:
            await database.stop()
            raise
        return database

    def url(self, proxy: int) -> str:
        """The way to the database through a proxy."""
        return _url(_proxy_directory(self._directory, proxy))

    async def execute(self, script: str) -> None:
        """Run SQL."""
        connection = await asyncpg.connect(self.url(0))
        try:
            await connection.execute(script)
        finally:
            await connection.close()

    async def tell(self, *command: str) -> None:
        """Have something done: see `_commands`."""
        async with self._one_at_a_time, asyncio.timeout(_COMMAND_TIMEOUT_S):
            assert self._process.stdin is not None
            self._process.stdin.write(f"{shlex.join(command)}\n".encode())
            await self._process.stdin.drain()
            await self._answer()

    async def stop(self) -> None:
        """End the process, and the database with it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def _answer(self) -> None:
        assert self._process.stdout is not None
        if await self._process.stdout.readline() != b"done\n":
            raise RuntimeError("the database's process has ended")


def main() -> None:
    """Be that process until standard input ends."""
    # Ctrl-C is the business of the process that started this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    directory, count = Path(sys.argv[1]), int(sys.argv[2])
    bin_dir = os.environ.get("GATEKEY_TEST_POSTGRES_BIN")
    with EmbeddedPostgres(directory, bin_dir=Path(bin_dir) if bin_dir else None, settings=_SETTINGS) as postgres:
        asyncio.run(schema.migrate(postgres.dsn()))
        upstream = Path(parse_qs(urlsplit(postgres.dsn()).query)["host"][0])
        proxies = [Proxy(_proxy_directory(directory, number), upstream) for number in range(count)]
        loop = asyncio.new_event_loop()
        for number, proxy in enumerate(proxies):
            _proxy_directory(directory, number).mkdir()
            loop.run_until_complete(proxy.listen())
        threading.Thread(target=loop.run_forever, daemon=True).start()
        commands = _commands(postgres, proxies)
        _say_done()
        for line in sys.stdin:
            name, *arguments = shlex.split(line)
            if name in {"start", "stop", "kill"}:
                commands[name]()
            else:
                loop.call_soon_threadsafe(partial(commands[name], *arguments))
            _say_done()


def _commands(postgres: EmbeddedPostgres, proxies: list[Proxy]) -> dict[str, Callable[..., None]]:
    def kill() -> None:
        assert postgres.pid is not None
        os.kill(postgres.pid, signal.SIGKILL)
        postgres.stop()

    def slow(round_trip_s: str) -> None:
        for proxy in proxies:
            proxy.slow(float(round_trip_s))

    def lose(number: str, what: str, loss: str) -> None:
        proxies[int(number)].lose(Loss[loss], changes_only=what == "changes")

    def heal() -> None:
        for proxy in proxies:
            proxy.heal()

    return {"start": postgres.start, "stop": postgres.stop, "kill": kill, "slow": slow, "lose": lose, "heal": heal}


def _proxy_directory(directory: Path, number: int) -> Path:
    return directory / f"proxy-{number}"


def _url(directory: Path) -> str:
    return f"postgresql://{SUPERUSER}@/{DATABASE}?host={directory}&port=5432"


def _say_done() -> None:
    sys.stdout.write("done\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
