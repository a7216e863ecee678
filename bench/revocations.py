"""How long a revocation takes, from the call to its return, when it is over everywhere."""

import asyncio
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from gatekey.core.names import format_key_id
from gatekey.v1 import api_key_service_pb2, api_key_service_pb2_grpc
from gatekey_server.store.embedded import EmbeddedPostgres

from bench import gatekey as g
from bench.gatekey import Gatekey
from bench.processes import measure
from bench.report import Report

_REVOCATIONS = 300
_LOAD_RATE = 2000.0
_KEYS = 100_000


async def revocations(report: Report, directory: Path) -> None:
    """With 1, 2 and 4 processes, idle and while checks are answered, and with one process stopped."""
    section = "revocations"
    bodies = g.write_bodies(directory / "many", (g.check(number).SerializeToString() for number in range(1000)))
    async with g.postgres() as cluster:
        async with g.gatekey(cluster) as server:
            await g.apply_product(server)
        await g.fill(cluster, _KEYS)
        # The first thousand are those that are checked meanwhile.
        numbers = iter(range(1000, _KEYS))
        for count in (1, 2, 4):
            async with _servers(cluster, count) as servers:
                await _revoke(servers, [next(numbers) for _ in range(50)])
                found = await _revoke(servers, [next(numbers) for _ in range(_REVOCATIONS)])
                _add(report, section, f"{count} processes, idle", found)
                plans = [server.plan(bodies, seconds=60, rate=_LOAD_RATE / count) for server in servers]
                loads = [asyncio.create_task(measure(plan, s.pid)) for plan, s in zip(plans, servers, strict=True)]
                await asyncio.sleep(1)
                found = await _revoke(servers, [next(numbers) for _ in range(_REVOCATIONS)])
                _add(report, section, f"{count} processes, {_LOAD_RATE:.0f} checks a second", found)
                for load in loads:
                    load.cancel()
                await asyncio.gather(*loads, return_exceptions=True)
        async with _servers(cluster, 2) as servers:
            await _revoke(servers[:1], [next(numbers) for _ in range(10)])
            os.kill(servers[1].pid, signal.SIGSTOP)
            try:
                found = await _revoke(servers[:1], [next(numbers) for _ in range(5)])
            finally:
                os.kill(servers[1].pid, signal.SIGCONT)
            report.add(section, "2 processes, one of them stopped: the longest", max(found), "ms", 4000, at_least=False)


def _add(report: Report, section: str, name: str, found: list[float]) -> None:
    ordered = sorted(found)
    report.add(section, f"{name}: p50", statistics.median(ordered), "ms", 10, at_least=False)
    report.add(section, f"{name}: p99", ordered[int(len(ordered) * 0.99)], "ms", 50, at_least=False)


@asynccontextmanager
async def _servers(cluster: EmbeddedPostgres, count: int) -> AsyncIterator[list[Gatekey]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(g.gatekey(cluster)) for _ in range(count)]


async def _revoke(servers: list[Gatekey], numbers: list[int]) -> list[float]:
    """Revoke keys one after the other, each through another server; milliseconds."""
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(server.channel()) for server in servers]
        stubs = [api_key_service_pb2_grpc.ApiKeyServiceStub(channel) for channel in channels]
        found = []
        for number in numbers:
            name = f"{g.tenant_of(number)}/apiKeys/{format_key_id(g.key_uid(number))}"
            request = api_key_service_pb2.RevokeApiKeyRequest(name=name)
            turn = number % len(servers)
            started_at = time.perf_counter()
            await stubs[turn].RevokeApiKey(request, metadata=tuple(servers[turn].metadata.items()))
            found.append((time.perf_counter() - started_at) * 1000)
        return found
