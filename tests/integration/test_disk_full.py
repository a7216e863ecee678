"""The disk of an embedded database is full: checks go on as long as it runs, changes are refused, and it comes back."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import gatekey
import pytest
from gatekey.cli.connection import find_endpoint

from tests.support.cli import EXAMPLES, Served

pytestmark = [
    pytest.mark.drill,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system"),
]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system with room for a cluster and not much more."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100m,mode=755", "tmpfs", directory], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return


def until(done: Callable[[], bool], within_s: float = 30) -> None:
    give_up_at = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def outcome(call: Callable[[], object]) -> str:
    """The reason of a refusal; empty for none."""
    try:
        call()
    except gatekey.ApiError as error:
        return error.reason or error.code.name
    return ""


async def use_up_the_log(database: "asyncpg.Connection[asyncpg.Record]") -> None:
    while True:
        await database.execute("select pg_switch_wal(), txid_current()")


async def test_a_full_disk_takes_changes_away_and_nothing_else(small_disk: Path, tmp_path: Path) -> None:
    filler = small_disk / "filler"
    data = small_disk / "data"
    with Served(tmp_path, "--data-dir", data, "--demo", EXAMPLES) as server:
        server.wait_for("allowed  forms/abc read")
        demo_keys = (data / "demo-keys.toml").read_text()
        key = demo_keys.partition('heyoo = "')[2].partition('"')[0]
        endpoint = find_endpoint({"GATEKEY_CONFIG": str(data / "client.toml")})
        sockets = data / "postgres.socket"
        database = await asyncpg.connect(f"postgresql://gatekey@/gatekey?host={sockets}&port=5432")
        with gatekey.Client(endpoint.address, token=endpoint.token) as client:

            def check() -> str:
                return outcome(lambda: client.check(key, "campaigns/abc", "read").require())

            def change() -> str:
                return outcome(lambda: client.product("heyoo").tenants.create(f"t{time.monotonic_ns()}"))

            assert (check(), change()) == ("", "")
            fill(filler)
            refused: list[str] = []

            def is_refused() -> bool:
                assert check() == ""
                refused.append(change())
                return bool(refused[-1])

            until(is_refused)
            assert refused[-1] == "DATABASE_UNAVAILABLE"
            assert check() == ""
            filler.unlink()
            until(lambda: change() == "")
            # The next file of its log cannot be made, and PostgreSQL ends.
            fill(filler)
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
                await use_up_the_log(database)
            until(lambda: "embedded_database.disk_full" in server.log.read_text() and change() != "")
            assert server.process.poll() is None
            filler.unlink()
            until(lambda: (check(), change()) == ("", ""))
        database.terminate()
