"""The asynchronous Python client: checks that travel together against checks that travel alone."""

import asyncio
import statistics
import time
from pathlib import Path

import gatekey

from bench import gatekey as g
from bench.gatekey import Gatekey
from bench.processes import SERVER_CORE
from bench.report import Report

_CALLERS = 64
_CHECKS = 100
_ROUNDS = 5
_KEYS = 1000


async def clients(report: Report, _: Path) -> None:
    """64 callers in one event loop, each of which asks again as soon as it is answered."""
    section = "clients"
    async with g.postgres() as cluster:
        async with g.gatekey(cluster) as server:
            await g.apply_product(server)
        await g.fill(cluster, _KEYS)
        async with g.gatekey(cluster, cores=SERVER_CORE) as server:
            found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
            # By turns, so that what the machine does beside them meets both.
            for turn in range(2 * _ROUNDS):
                batch = turn % 2 == 0
                found[batch].append(await _run(server, batch=batch))
            rates = {batch: statistics.median(rate for rate, _ in runs) for batch, runs in found.items()}
            for batch, name in ((False, "alone"), (True, "together")):
                report.add(section, f"{_CALLERS} callers, {name}", rates[batch], "/s")
                cpu_us = statistics.median(cpu for _, cpu in found[batch])
                report.add(section, f"{_CALLERS} callers, {name}: CPU of the client for each", cpu_us, "µs")
            report.add(section, "together against alone", rates[True] / rates[False], "times", 3)


async def _run(server: Gatekey, *, batch: bool) -> tuple[float, float]:
    """Checks a second, and microseconds of the client's CPU for each."""
    async with gatekey.AsyncClient(server.address, token=server.token, batch=batch) as client:

        async def ask(caller: int, checks: int) -> None:
            for number in range(checks):
                key = g.check((caller * checks + number) % _KEYS)
                if not await client.check(key.key, key.resource, key.action):
                    raise RuntimeError("a check was denied")

        await asyncio.gather(*(ask(caller, 10) for caller in range(_CALLERS)))
        started_at, cpu_at = time.perf_counter(), time.process_time()
        await asyncio.gather(*(ask(caller, _CHECKS) for caller in range(_CALLERS)))
        total = _CALLERS * _CHECKS
        return total / (time.perf_counter() - started_at), (time.process_time() - cpu_at) / total * 1e6
