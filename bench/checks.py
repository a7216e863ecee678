"""Checks that are answered from memory, beside the peers: throughput, CPU, latency, batches, workers."""

import asyncio
import contextlib
import statistics
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path

from gatekey.v1 import check_service_pb2 as pb

from bench import gatekey as g
from bench.gatekey import Gatekey
from bench.load import Plan
from bench.peers import cerbos, grpcio, nginx
from bench.processes import ALL_CORES, SERVER_CORE, Measured, measure
from bench.report import Report

_SECONDS = 5.0
_ROUNDS = 3
_KEYS = 10_000
_BATCH = 100
_SMALL_BATCH = 20
_CERBOS_RESOURCES = 50
# More than a server remembers.
_NEW_CHECKS = 200_000


async def _best(load: Callable[[], Awaitable[Measured]]) -> Measured:
    """The middle one of a few runs, after one to warm up."""
    await load()
    runs = [await load() for _ in range(_ROUNDS)]
    return sorted(runs, key=lambda run: run.cpu_us)[len(runs) // 2]


async def _by_turns(loads: Mapping[str, tuple[int, Plan, int]]) -> Mapping[str, Measured]:
    """The middle one of a few rounds of each load, after one to warm up.

    By turns, so that what the machine does beside them meets all.
    """
    rounds = [{name: await measure(plan, pid) for name, (pid, plan, _) in loads.items()} for _ in range(1 + _ROUNDS)]
    return {
        name: sorted((each[name] for each in rounds[1:]), key=lambda run: run.cpu_us)[_ROUNDS // 2] for name in loads
    }


async def throughput(report: Report, directory: Path) -> None:
    """Requests per second and core, and the CPU that each costs, on one core while the load is on the other."""
    one = g.write_bodies(directory / "one", [g.check(1).SerializeToString()])
    many = g.write_bodies(directory / "many", (g.check(number).SerializeToString() for number in range(_KEYS)))
    a_key = g.write_bodies(directory / "a-key", [g.batch([1] * _BATCH).SerializeToString()])
    keys = g.write_bodies(
        directory / "keys",
        (g.batch(range(n, n + _BATCH)).SerializeToString() for n in range(0, _KEYS, _BATCH)),
    )
    section = "throughput"
    async with contextlib.AsyncExitStack() as servers:
        enter = servers.enter_async_context
        loads: dict[str, tuple[int, Plan, int]] = {}
        peer = await enter(nginx.nginx(SERVER_CORE))
        if isinstance(peer, str):
            report.leave_out("nginx", peer)
        else:
            loads["nginx, an empty answer"] = peer.pid, peer.plan(one, seconds=_SECONDS), 1
        trivial = await enter(grpcio.trivial(SERVER_CORE))
        loads["grpc.aio, no decision"] = trivial.pid, trivial.plan(one, seconds=_SECONDS), 1
        policies = await enter(cerbos.cerbos(SERVER_CORE))
        if isinstance(policies, str):
            report.leave_out("Cerbos", policies)
        else:
            single = g.write_bodies(directory / "cerbos-1", [cerbos.request(1)])
            several = g.write_bodies(directory / "cerbos-50", [cerbos.request(_CERBOS_RESOURCES)])
            await cerbos.assert_right(policies, _CERBOS_RESOURCES)
            loads["Cerbos, one resource"] = policies.pid, policies.plan(single, seconds=_SECONDS), 1
            plan = policies.plan(several, seconds=_SECONDS, depth=4)
            loads["Cerbos, 50 resources a call, each"] = policies.pid, plan, _CERBOS_RESOURCES
        cluster = await enter(g.postgres())
        async with g.gatekey(cluster) as server:
            await g.apply_product(server)
        await g.fill(cluster, _KEYS)
        server = await enter(g.gatekey(cluster, cores=SERVER_CORE))
        await g.assert_right(server, range(0, _KEYS, 997))
        loads["Gatekey, one key"] = server.pid, server.plan(one, seconds=_SECONDS), 1
        loads[f"Gatekey, {_KEYS} keys"] = server.pid, server.plan(many, seconds=_SECONDS), 1
        for name, bodies in (("of one key", a_key), ("of 100 keys", keys)):
            plan = server.plan(bodies, path=g.BATCH_CHECK, expect="0a", depth=4, seconds=_SECONDS)
            loads[f"Gatekey, batches {name}, each check"] = server.pid, plan, _BATCH
        found = await _by_turns(loads)
    for name, (_, _, each) in loads.items():
        report.add(section, f"{name}: CPU for each", found[name].cpu_us / each, "µs")
        report.add(section, f"{name}: per second and core", found[name].rate * each, "/s")
    warm, batched = found[f"Gatekey, {_KEYS} keys"], found["Gatekey, batches of one key, each check"]
    if "Cerbos, one resource" in found:
        single_rate = found["Cerbos, one resource"].rate
        report.add(section, "warm check against Cerbos, per second and core", warm.rate / single_rate, "times", 5)
        ratio = batched.rate * _BATCH / (found["Cerbos, 50 resources a call, each"].rate * _CERBOS_RESOURCES)
        report.add(section, "batched check against Cerbos's, per second and core", ratio, "times", 10)
    if "nginx, an empty answer" in found:
        ratio = warm.cpu_us / found["nginx, an empty answer"].cpu_us
        report.add(section, "CPU of a warm check against nginx's request", ratio, "times", 6, at_least=False)


async def latency(report: Report, directory: Path) -> None:
    """Latency of warm checks at shares of the highest load, sent at a fixed rate."""
    many = g.write_bodies(directory / "many", (g.check(number).SerializeToString() for number in range(_KEYS)))
    section = "latency"
    async with g.postgres() as cluster:
        async with g.gatekey(cluster) as server:
            await g.apply_product(server)
        await g.fill(cluster, _KEYS)
        async with g.gatekey(cluster) as server:
            full = await _best(lambda: measure(server.plan(many, seconds=_SECONDS), server.pid, ALL_CORES))
            report.add(section, "highest load", full.rate, "/s")
            for share in (0.1, 0.25, 0.5, 0.75):
                plan = server.plan(many, seconds=_SECONDS, rate=full.rate * share)
                runs = [await measure(plan, server.pid, ALL_CORES) for _ in range(_ROUNDS)]
                for name in ("p50", "p99"):
                    value = statistics.median(run.result.percentiles[name] for run in runs) / 1000
                    goal = 2 if (share, name) == (0.5, "p99") else None
                    report.add(section, f"{name} at {share:.0%} of it", value, "ms", goal, at_least=False)
    async with nginx.nginx(ALL_CORES) as peer:
        if isinstance(peer, str):
            report.leave_out("nginx", peer)
            return
        plan = peer.plan(many, seconds=_SECONDS, rate=full.rate * 0.5)
        runs = [await measure(plan, peer.pid, ALL_CORES) for _ in range(_ROUNDS)]
        for name in ("p50", "p99"):
            value = statistics.median(run.result.percentiles[name] for run in runs) / 1000
            report.add(section, f"nginx, an empty answer: {name} at as many", value, "ms")


async def workers(report: Report, directory: Path) -> None:
    """One worker against two, on cores that they share with the load."""
    section = "workers"
    many = g.write_bodies(directory / "many", (g.check(number).SerializeToString() for number in range(_KEYS)))
    batches = _write_new_batches(directory / "batches", _BATCH)
    async with g.postgres() as cluster:
        async with g.gatekey(cluster) as server:
            await g.apply_product(server)
        await g.fill(cluster, _KEYS)
        # Of batches whose checks are decided one by one, the load takes next to nothing.
        for name, bodies, path, each, goal in (
            ("checks", many, g.CHECK, 1, None),
            ("checks in batches", batches, g.BATCH_CHECK, _BATCH, 1.7),
        ):
            expect = g.ALLOWED if each == 1 else "0a"
            options = {"path": path, "expect": expect, "seconds": _SECONDS, "connections": 64, "depth": 2}
            rates: dict[int, list[float]] = {1: [], 2: []}
            # By turns, so that what the machine does beside them meets both.
            for count, cores in [(1, SERVER_CORE), (2, ALL_CORES)] * _ROUNDS:
                async with g.gatekey(cluster, cores=cores, WORKERS=str(count)) as server:
                    plan = server.plan(bodies, **options)
                    await measure(replace(plan, seconds=1), server.pid, ALL_CORES)
                    rates[count].append((await measure(plan, server.pid, ALL_CORES)).rate)
            one, two = (statistics.median(rates[count]) for count in (1, 2))
            report.add(section, f"{name}, 1 worker on one core", one * each, "/s")
            report.add(section, f"{name}, 2 workers on two cores", two * each, "/s")
            report.add(section, f"{name}, 2 against 1", two / one, "times", goal)


async def overload(report: Report, directory: Path) -> None:
    """Twice the batches of 20 that can be served: what is answered, how soon, and how soon it is over."""
    section = "overload"
    # A single check that is in memory costs the transport more than the decision: refusing it saves little.
    new = _write_new_batches(directory / "new", _SMALL_BATCH)
    async with g.postgres() as cluster:
        async with g.gatekey(cluster) as server:
            await g.apply_product(server)
        await g.fill(cluster, _KEYS)
        async with g.gatekey(cluster, cores=SERVER_CORE) as server:
            plan = server.plan(new, path=g.BATCH_CHECK, expect="0a", seconds=_SECONDS, connections=32, depth=2)
            full = await _best(lambda: measure(plan, server.pid))
            calm = await measure(replace(plan, rate=full.rate * 0.5), server.pid)
            flood = asyncio.create_task(measure(replace(plan, rate=full.rate * 2), server.pid))
            admin = [await _time_admin(server) for _ in range(20)]
            flooded = await flood
            after = await measure(replace(plan, rate=full.rate * 0.5, seconds=1), server.pid)
    result = flooded.result
    report.add(section, "highest load", full.rate, "/s")
    report.add(section, "answered at twice that", flooded.rate, "/s")
    report.add(section, "refused of it", result.refused / (result.refused + result.right) * 100, "%")
    report.add(section, "p99 at half the highest load", calm.result.percentiles["p99"] / 1000, "ms")
    report.add(section, "p99 of what is answered in the overload", result.percentiles["p99"] / 1000, "ms")
    ratio = result.percentiles["p99"] / calm.result.percentiles["p99"]
    report.add(section, "p99 against half the load", ratio, "times", 5, at_least=False)
    report.add(section, "GetProduct meanwhile, the slowest of 20", max(admin) * 1000, "ms")
    report.add(section, "refused in the second after", after.result.refused, "")


def _write_new_batches(path: Path, size: int) -> Path:
    """Batches of which no check is a repetition, for as many as a server remembers."""
    return g.write_bodies(
        path,
        (
            pb.BatchCheckRequest(checks=[g.check(n % _KEYS, n) for n in range(first, first + size)]).SerializeToString()
            for first in range(0, _NEW_CHECKS, size)
        ),
    )


async def _time_admin(server: Gatekey) -> float:
    await asyncio.sleep(0.1)
    return await g.time_get_product(server)
