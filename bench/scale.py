"""Checks over 10 thousand, 1 million and 10 million keys: cold, warm, memory, and the size of what is stored."""

import time
from pathlib import Path
from typing import Any

import asyncpg
from gatekey_server.store.embedded import EmbeddedPostgres

from bench import gatekey as g
from bench.gatekey import Gatekey
from bench.load import Plan
from bench.peers import cerbos
from bench.processes import ALL_CORES, Measured, measure, memory_bytes
from bench.report import Report

SIZES = (10_000, 1_000_000, 10_000_000)
_COLD_CALLS = 1_000_000
_SECONDS = 5.0
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
    if 1_000_000 in sizes:
        async with cerbos.cerbos(ALL_CORES) as peer:
            if isinstance(peer, str):
                report.leave_out("Cerbos", peer)
                return
            bodies = g.write_bodies(directory / "cerbos", [cerbos.request(1)])
            plan = peer.plan(bodies, seconds=_SECONDS, **_MANY_AT_ONCE)
            await measure(plan, peer.pid, ALL_CORES)
            rate = (await measure(plan, peer.pid, ALL_CORES)).rate
        report.add(section, "Cerbos, one resource, in memory: per second", rate, "/s")
        ratio = found["cold, all cores", 1_000_000].rate / rate
        report.add(section, "cold checks over 1,000,000 keys against Cerbos's in memory", ratio, "times", 1.5)


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
    warm = g.write_bodies(
        directory / "warm", (g.check(number * step % size).SerializeToString() for number in range(min(calls, 50_000)))
    )
    settings: dict[str, Any] = {"CACHE_MB": "4000", "MAX_CONNECTIONS": "8"}
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
        for name, order in (("warm, in turn", "in turn"), ("warm, Zipf", "zipf")):
            plan = server.plan(warm, seconds=_SECONDS, order=order)
            await measure(plan, server.pid, ALL_CORES)
            found["warm", size] = await _add(report, section, f"{size:,} keys, {name}", server, plan)
    async with g.gatekey(cluster, WORKERS=str(len(ALL_CORES)), **settings) as server:
        plan = server.plan(cold, calls=calls, seconds=240, **_MANY_AT_ONCE)
        name = f"{size:,} keys, cold, {len(ALL_CORES)} workers"
        found["cold, all cores", size] = await _add(report, section, name, server, plan)
    # How long a cold check takes when there are not as many as there can be.
    async with g.gatekey(cluster, **settings) as server:
        plan = server.plan(cold, calls=min(calls, 20_000), seconds=60, rate=2000)
        found["cold", size] = await measure(plan, server.pid, ALL_CORES)
        for name in ("p50", "p99"):
            value = found["cold", size].result.percentiles[name] / 1000
            report.add(section, f"{size:,} keys, cold, 2,000 a second: {name}", value, "ms")


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
