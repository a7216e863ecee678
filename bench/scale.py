"""Checks over 10 thousand, 1 million and 10 million keys: cold, warm, memory, and the size of what is stored."""

import asyncio
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import asyncpg
from gatekey_server.store.embedded import EmbeddedPostgres

from bench import gatekey as g
from bench.gatekey import Gatekey
from bench.load import Plan
from bench.peers import cerbos
from bench.processes import ALL_CORES, Measured, cpu_s, measure, memory_bytes
from bench.report import Report

_SECTION = "scale"
SIZES = (10_000, 1_000_000, 10_000_000)
_BESIDE_CERBOS = 1_000_000
_COLD_CALLS = 1_000_000
_RATE = 2000.0
_RATED_CALLS = 10_000
_FIRST_CALLS = 2000
_ROUNDS = 3
_WARM_KEYS = 10_000
_SECONDS = 5.0
# A server writes uses down every so often.
_FLUSH_S = 10.0
_IDLE_SHARE = 0.1
_USES_S = 300.0
_SETTINGS: dict[str, Any] = {"CACHE_MB": "4000", "MAX_CONNECTIONS": "8"}
# Enough connections for the kernel to spread them evenly over workers.
_MANY_AT_ONCE: dict[str, Any] = {"connections": 64, "depth": 4, "seconds": 240}

_STORED = """
select relname, pg_relation_size(oid), reltuples from pg_class
where relname in ('api_key', 'secret', 'api_key_pkey', 'secret_pkey', 'secret_digest_key', 'api_key_by_principal')
order by relkind desc, relname
"""


async def scale(report: Report, directory: Path, sizes: tuple[int, ...] = SIZES) -> None:
    """At each size, on the same database that grows; and at the last one beside another with as many as the first."""
    async with g.postgres() as cluster, g.postgres() as beside:
        for each in (cluster, beside):
            async with g.gatekey(each) as server:
                await g.apply_product(server)
        for size in sizes:
            started_at = time.perf_counter()
            await g.fill(cluster, size)
            report.add(_SECTION, f"{size:,} keys: load into the database", time.perf_counter() - started_at, "s")
            await _measure_size(report, cluster, _Keys(directory, size))
        await _measure_rows(report, cluster)
        if len(sizes) > 1:
            await g.fill(beside, sizes[0])
            await _compare(report, (beside, _Keys(directory, sizes[0])), (cluster, _Keys(directory, sizes[-1])))


class _Keys:
    """The keys of a database, in an order without rhyme."""

    def __init__(self, directory: Path, size: int) -> None:
        self.directory = directory
        self.size = size
        self.cold_calls = min(size, _COLD_CALLS)

    def bodies(self, numbers: range) -> Path:
        """Checks of some of them, each once."""
        # The step has no divisor in common with the sizes.
        checks = (g.check(number * 7_368_787 % self.size) for number in numbers)
        name = f"{self.size}-{numbers.start}-{numbers.stop}"
        return g.write_bodies(self.directory / name, (check.SerializeToString() for check in checks))


async def _measure_size(report: Report, cluster: EmbeddedPostgres, keys: _Keys) -> None:
    name = f"{keys.size:,} keys"
    # First, while PostgreSQL has nothing to clean up after the others.
    async with g.gatekey(cluster, **_SETTINGS) as server:
        rated = await _measure_cold_at_a_rate(server, keys, _ROUNDS * _RATED_CALLS)
        for percentile in ("p50", "p99"):
            value = rated.result.percentiles[percentile] / 1000
            report.add(_SECTION, f"{name}, cold, 2,000 a second: {percentile}", value, "ms")
    cold, warm = keys.bodies(range(keys.cold_calls)), keys.bodies(range(_WARM_KEYS))
    async with g.gatekey(cluster, **_SETTINGS) as server:
        report.add(_SECTION, f"{name}: start", server.start_s, "s")
        await g.assert_right(server, range(0, keys.size, keys.size // 7))
        before = memory_bytes(server.pid)
        await _add(report, f"{name}, cold", server, server.plan(cold, calls=keys.cold_calls, **_MANY_AT_ONCE))
        more = (memory_bytes(server.pid) - before) / keys.cold_calls
        report.add(_SECTION, f"{name}: memory for each of the {keys.cold_calls:,} snapshots", more, "bytes")
        await _until_uses_are_written(server)
        for order in ("in turn", "zipf"):
            plan = server.plan(warm, seconds=_SECONDS, order=order)
            await measure(plan, server.pid, ALL_CORES)
            await _add(report, f"{name}, warm, {order}", server, plan)
    # Cerbos before and after: the machine is not equally fast for so long.
    earlier = await _measure_cerbos(report, keys.directory) if keys.size == _BESIDE_CERBOS else None
    async with g.gatekey(cluster, WORKERS=str(len(ALL_CORES)), **_SETTINGS) as server:
        plan = server.plan(cold, calls=keys.cold_calls, **_MANY_AT_ONCE)
        measured = await _add(report, f"{name}, cold, {len(ALL_CORES)} workers", server, plan)
    later = await _measure_cerbos(report, keys.directory) if earlier is not None else None
    if earlier is not None and later is not None:
        rate = (earlier + later) / 2
        report.add(_SECTION, "Cerbos, one resource, in memory: per second", rate, "/s")
        against = f"cold checks over {name} against Cerbos's in memory"
        report.add(_SECTION, against, measured.rate / rate, "times", 1.5)


async def _compare(
    report: Report, small: tuple[EmbeddedPostgres, _Keys], large: tuple[EmbeddedPostgres, _Keys]
) -> None:
    """Few keys and many, by turns, because the machine is not equally fast for as long as all this takes."""
    warm_us: dict[int, list[float]] = defaultdict(list)
    cold_us: dict[int, list[float]] = defaultdict(list)
    for turn in range(_ROUNDS):
        for cluster, keys in (small, large):
            async with g.gatekey(cluster, **_SETTINGS) as server:
                cold = await _measure_cold_at_a_rate(server, keys, turn * _RATED_CALLS)
                cold_us[keys.size].append(cold.result.percentiles["p99"])
                plan = server.plan(keys.bodies(range(_WARM_KEYS)), seconds=_SECONDS)
                await measure(plan, server.pid, ALL_CORES)
                warm_us[keys.size].append((await measure(plan, server.pid, ALL_CORES)).cpu_us)
    few, many = small[1].size, large[1].size
    for size in (few, many):
        value = statistics.median(cold_us[size]) / 1000
        report.add(_SECTION, f"by turns, {size:,} keys, cold, 2,000 a second: p99", value, "ms")
    warm = statistics.median(warm_us[few]) / statistics.median(warm_us[many]) * 100
    report.add(_SECTION, f"CPU of a warm check at {few:,} keys against {many:,}", warm, "%", 90)
    times = statistics.median(cold_us[many]) / statistics.median(cold_us[few])
    report.add(_SECTION, f"p99 of a cold check at {many:,} keys against {few:,}", times, "times", 2, at_least=False)


async def _measure_cold_at_a_rate(server: Gatekey, keys: _Keys, start: int) -> Measured:
    """How long a cold check takes when there are not as many as there can be."""
    after_first, end = start + _FIRST_CALLS, start + _RATED_CALLS
    # The first ones wait for connections to the database.
    first, rest = (
        server.plan(keys.bodies(bodies), calls=len(bodies), seconds=60, rate=_RATE)
        for bodies in (range(start, after_first), range(after_first, end))
    )
    await measure(first, server.pid, ALL_CORES)
    return await measure(rest, server.pid, ALL_CORES)


async def _measure_cerbos(report: Report, directory: Path) -> float | None:
    async with cerbos.cerbos(ALL_CORES) as peer:
        if isinstance(peer, str):
            report.leave_out("Cerbos", peer)
            return None
        bodies = g.write_bodies(directory / "cerbos", [cerbos.request(1)])
        plan = peer.plan(bodies, **{**_MANY_AT_ONCE, "seconds": _SECONDS})
        await measure(plan, peer.pid, ALL_CORES)
        return (await measure(plan, peer.pid, ALL_CORES)).rate


async def _until_uses_are_written(server: Gatekey) -> None:
    """Wait until a server has written down which keys were used, for which it takes a while after so many."""
    async with asyncio.timeout(_USES_S):
        while True:
            before = cpu_s(server.pid)
            await asyncio.sleep(_FLUSH_S)
            if cpu_s(server.pid) - before < _FLUSH_S * _IDLE_SHARE:
                return


async def _add(report: Report, name: str, server: Gatekey, plan: Plan) -> Measured:
    measured = await measure(plan, server.pid, ALL_CORES)
    report.add(_SECTION, f"{name}: per second", measured.rate, "/s")
    report.add(_SECTION, f"{name}: CPU of the server for each", measured.cpu_us, "µs")
    return measured


async def _measure_rows(report: Report, cluster: EmbeddedPostgres) -> None:
    connection = await asyncpg.connect(cluster.dsn())
    try:
        for name, size, rows in await connection.fetch(_STORED):
            report.add(_SECTION, f"{name}: for each row", size / rows, "bytes")
    finally:
        await connection.close()
