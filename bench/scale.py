"""Checks over 10 thousand, 1 million and 10 million keys: cold, warm, memory, and the size of what is stored."""

import asyncio
import time
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

SIZES = (10_000, 1_000_000, 10_000_000)
_BESIDE_CERBOS = 1_000_000
_COLD_CALLS = 1_000_000
_FIRST_CALLS = 2000
_WARM_KEYS = 10_000
_SECONDS = 5.0
# A server writes uses down every so often.
_FLUSH_S = 10.0
_IDLE_SHARE = 0.1
_USES_S = 300.0
# Enough connections for the kernel to spread them evenly over workers.
_MANY_AT_ONCE: dict[str, Any] = {"connections": 64, "depth": 4}

_STORED = """
select relname, pg_relation_size(oid), reltuples from pg_class
where relname in ('api_key', 'secret', 'api_key_pkey', 'secret_pkey', 'secret_digest_key', 'api_key_by_principal')
order by relkind desc, relname
"""


async def scale(report: Report, directory: Path, sizes: tuple[int, ...] = SIZES) -> None:
    """At each size, on the same database that grows."""
    section = "scale"
    found: dict[tuple[str, int], Measured] = {}
    async with g.postgres() as cluster:
        async with g.gatekey(cluster) as server:
            await g.apply_product(server)
        for size in sizes:
            started_at = time.perf_counter()
            await g.fill(cluster, size)
            report.add(section, f"{size:,} keys: load into the database", time.perf_counter() - started_at, "s")
            await _measure_size(report, section, cluster, directory, size, found)
        await _measure_rows(report, section, cluster)
    first, last = sizes[0], sizes[-1]
    warm = found["warm", first].cpu_us / found["warm", last].cpu_us * 100
    report.add(section, f"CPU of a warm check at {first:,} keys against {last:,}", warm, "%", 90)
    cold = found["cold", last].result.percentiles["p99"] / found["cold", first].result.percentiles["p99"]
    report.add(section, f"p99 of a cold check at {last:,} keys against {first:,}", cold, "times", 2, at_least=False)


async def _measure_size(
    report: Report,
    section: str,
    cluster: EmbeddedPostgres,
    directory: Path,
    size: int,
    found: dict[tuple[str, int], Measured],
) -> None:
    # Every key once, in an order without rhyme: the step has no divisor in common with the sizes.
    calls = min(size, _COLD_CALLS)
    step = 7_368_787
    cold = g.write_bodies(
        directory / "cold", (g.check(number * step % size).SerializeToString() for number in range(calls))
    )
    # The last of them.
    first = g.write_bodies(
        directory / "first",
        (g.check((calls - 1 - number) * step % size).SerializeToString() for number in range(_FIRST_CALLS)),
    )
    warm = g.write_bodies(
        directory / "warm", (g.check(number * step % size).SerializeToString() for number in range(_WARM_KEYS))
    )
    settings: dict[str, Any] = {"CACHE_MB": "4000", "MAX_CONNECTIONS": "8"}
    # How long a cold check takes when there are not as many as there can be. First, while PostgreSQL has nothing to
    # clean up after the others.
    async with g.gatekey(cluster, **settings) as server:
        # The first ones wait for connections to the database.
        await measure(server.plan(first, calls=_FIRST_CALLS, seconds=60, rate=2000), server.pid, ALL_CORES)
        plan = server.plan(cold, calls=min(calls - _FIRST_CALLS, 20_000), seconds=60, rate=2000)
        found["cold", size] = await measure(plan, server.pid, ALL_CORES)
        for name in ("p50", "p99"):
            value = found["cold", size].result.percentiles[name] / 1000
            report.add(section, f"{size:,} keys, cold, 2,000 a second: {name}", value, "ms")
    async with g.gatekey(cluster, **settings) as server:
        report.add(section, f"{size:,} keys: start", server.start_s, "s")
        await g.assert_right(server, range(0, size, size // 7))
        before = memory_bytes(server.pid)
        plan = server.plan(cold, calls=calls, seconds=240, **_MANY_AT_ONCE)
        await _add(report, section, f"{size:,} keys, cold", server, plan)
        report.add(
            section,
            f"{size:,} keys: memory for each of the {calls:,} facts",
            (memory_bytes(server.pid) - before) / calls,
            "bytes",
        )
        await _until_uses_are_written(server)
        for name, order in (("warm, in turn", "in turn"), ("warm, Zipf", "zipf")):
            plan = server.plan(warm, seconds=_SECONDS, order=order)
            await measure(plan, server.pid, ALL_CORES)
            found["warm", size] = await _add(report, section, f"{size:,} keys, {name}", server, plan)
    # Cerbos before and after: the machine is not equally fast for so long.
    earlier = await _measure_cerbos(report, directory) if size == _BESIDE_CERBOS else None
    async with g.gatekey(cluster, WORKERS=str(len(ALL_CORES)), **settings) as server:
        plan = server.plan(cold, calls=calls, seconds=240, **_MANY_AT_ONCE)
        name = f"{size:,} keys, cold, {len(ALL_CORES)} workers"
        measured = await _add(report, section, name, server, plan)
    later = await _measure_cerbos(report, directory) if earlier is not None else None
    if earlier is not None and later is not None:
        rate = (earlier + later) / 2
        report.add(section, "Cerbos, one resource, in memory: per second", rate, "/s")
        name = f"cold checks over {size:,} keys against Cerbos's in memory"
        report.add(section, name, measured.rate / rate, "times", 1.5)


async def _measure_cerbos(report: Report, directory: Path) -> float | None:
    async with cerbos.cerbos(ALL_CORES) as peer:
        if isinstance(peer, str):
            report.leave_out("Cerbos", peer)
            return None
        bodies = g.write_bodies(directory / "cerbos", [cerbos.request(1)])
        plan = peer.plan(bodies, seconds=_SECONDS, **_MANY_AT_ONCE)
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


async def _add(report: Report, section: str, name: str, server: Gatekey, plan: Plan) -> Measured:
    measured = await measure(plan, server.pid, ALL_CORES)
    report.add(section, f"{name}: per second", measured.rate, "/s")
    report.add(section, f"{name}: CPU of the server for each", measured.cpu_us, "µs")
    return measured


async def _measure_rows(report: Report, section: str, cluster: EmbeddedPostgres) -> None:
    connection = await asyncpg.connect(cluster.dsn())
    try:
        for name, size, rows in await connection.fetch(_STORED):
            report.add(section, f"{name}: for each row", size / rows, "bytes")
    finally:
        await connection.close()
