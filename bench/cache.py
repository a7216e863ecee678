"""The cache by itself: what a hit costs beyond the decision, and what a snapshot takes in memory.

`python -m bench.cache DSN SNAPSHOTS` loads so many from a database and tells what they take, in a process of its own.
"""

import asyncio
import gc
import json
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import cast

import asyncpg
from gatekey.core import clock
from gatekey.core.decisions import KeySnapshot, Request, decide
from gatekey.core.invalidation_index import InvalidationIndex
from gatekey.core.lease import LEASE_S
from gatekey_server.freshness.lease import PrimaryLease
from gatekey_server.freshness.snapshot_source import SnapshotSource, VersionedSnapshot
from gatekey_server.store.database import Database

from bench import gatekey as g
from bench.processes import ROOT, memory_bytes
from bench.report import Report

_SNAPSHOTS = 200_000
_LOOPS = 500
_REPEATS = 400
_BATCH = 1000

# Two grants that no other key has: the most memory, for equal grants are shared.
_OWN_GRANTS = """
update api_key set mode = 'RESTRICTED', grants = jsonb_build_array(
    jsonb_build_object('resource', 'campaigns', 'actions', jsonb_build_array('read', 'write')),
    jsonb_build_object('resource', 'contacts/' || key_uid, 'actions', jsonb_build_array('read'))
)
"""


async def cache(report: Report, _: Path) -> None:
    """Time and memory."""
    section = "cache"
    async with g.postgres() as cluster:
        async with g.gatekey(cluster) as server:
            await g.apply_product(server)
        await g.fill(cluster, _SNAPSHOTS)
        dsn = cluster.dsn()
        async with _source(dsn) as source:
            secret = g.digests(1)
            snapshot = cast("KeySnapshot", cast("VersionedSnapshot", await source.get(secret)).snapshot)
            request = Request(("campaigns", "spring"), "write")
            report.add(section, "a decision", _fastest(partial(decide, snapshot, request, datetime.now(UTC))), "µs")
            hit = _fastest(partial(source.recall, secret))
            report.add(section, "a hit, beyond the decision", hit, "µs", 3, at_least=False)
        for kind, change in (("without grants of its own", ""), ("with two grants of its own", _OWN_GRANTS)):
            if change:
                connection = await asyncpg.connect(dsn)
                await connection.execute(change)
                await connection.close()
            found = await asyncio.to_thread(_measure_memory, dsn)
            report.add(section, f"memory of a snapshot {kind}", found["bytes"], "bytes", 1000, at_least=False)
            report.add(section, f"what it counts as {kind}", found["counted"], "bytes")
            report.add(
                section, f"a full garbage collection with {_SNAPSHOTS} snapshots {kind}", found["pause_ms"], "ms"
            )


class _source:  # noqa: N801 - used like a function
    """A source of snapshots on a database, with a lease that does not end."""

    def __init__(self, dsn: str) -> None:
        self._database = Database.connect(dsn, max_connections=4, statement_timeout_s=10, acquire_timeout_s=10)

    async def __aenter__(self) -> SnapshotSource:
        database = await self._database.__aenter__()
        (started,) = await database.fetch("select pg_postmaster_start_time()")
        lease = PrimaryLease()
        lease.renew(clock.now() + 1e9 - LEASE_S, started[0])
        return SnapshotSource(database, InvalidationIndex(), lease, max_entries=10**7, max_bytes=10**10)

    async def __aexit__(self, *error: object) -> None:
        await self._database.__aexit__(None, None, None)


def _fastest(work: Callable[[], object]) -> float:
    """Microseconds, of the quietest of many short runs."""
    return min(timeit.repeat(work, number=_LOOPS, repeat=_REPEATS)) / _LOOPS * 1e6


def _measure_memory(dsn: str) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.cache", dsn, str(_SNAPSHOTS)]
    found: dict[str, float] = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    return found


async def _load(dsn: str, snapshots: int) -> dict[str, float]:
    async with _source(dsn) as source:
        # What the first few bring along is not theirs.
        await source.get_each([(g.digests(number), 0) for number in range(_BATCH)])
        gc.collect()
        before, held = memory_bytes("self"), source.entries
        for first in range(_BATCH, snapshots, _BATCH):
            await source.get_each([(g.digests(number), 0) for number in range(first, first + _BATCH)])
        started_at = time.perf_counter()
        gc.collect()
        pause_s = time.perf_counter() - started_at
        more = source.entries - held
        return {
            "bytes": (memory_bytes("self") - before) / more,
            "counted": source.weight / source.entries,
            "pause_ms": pause_s * 1000,
        }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_load(sys.argv[1], int(sys.argv[2])))))
