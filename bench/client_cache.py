"""The client cache of the Python client: what a check costs in the client, and what a client costs a server."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gatekey
from gatekey.v1 import cache_service_pb2

from bench import gatekey as g
from bench.processes import SERVER_CORE, measure
from bench.report import Report

_KEYS = 1000
_LEARN_S = 30.0
_ROUNDS = 200_000
_SAMPLES = 50_000
_SYNC = "/gatekey.v1.CacheService/Sync"
_SYNCS_PER_S = 4 / 3
_SECONDS = 5.0


async def client_cache(report: Report, directory: Path) -> None:
    """Checks that are decided in the client, by one thread; and `Sync`, with nothing to tell."""
    section = "client cache"
    async with g.postgres() as cluster:
        async with g.gatekey(cluster) as server:
            await g.apply_product(server)
        await g.fill(cluster, _KEYS)
        async with g.gatekey(cluster, cores=SERVER_CORE) as server:
            keys = [g.check(number).key for number in range(_KEYS)]
            with gatekey.Client(server.address, token=server.token, cache=True) as client:
                _learn(client, keys)
                questions = {
                    "the same check again and again": lambda n: (keys[0], "campaigns/spring", "write"),
                    f"{_KEYS} keys": lambda n: (keys[n % _KEYS], "campaigns/spring", "write"),
                    f"{_KEYS} keys, another resource each time": lambda n: (keys[n % _KEYS], f"campaigns/{n}", "write"),
                }
                for number, (name, question) in enumerate(questions.items()):
                    goals = (200_000, 5) if number < 2 else (None, None)
                    _measure(report, section, name, client, question, *goals)
            cursor = await _cursor(server)
            bodies = g.write_bodies(
                directory / "sync", [cache_service_pb2.SyncRequest(cursor=cursor).SerializeToString()]
            )
            measured = await measure(server.plan(bodies, path=_SYNC, expect="", seconds=_SECONDS), server.pid)
            report.add(section, "a Sync: CPU of the server", measured.cpu_us, "µs")
            report.add(section, "a client: CPU of the server a second", measured.cpu_us * _SYNCS_PER_S, "µs")
            report.add(section, "clients that one core keeps in step", measured.rate / _SYNCS_PER_S, "")


def _learn(client: gatekey.Client, keys: list[str]) -> None:
    ends = time.monotonic() + _LEARN_S
    local_cache: Any = client._local_cache  # noqa: SLF001
    while any(local_cache.recall(key, "campaigns/spring", "write", None, None, 0) is None for key in keys):
        client.check_many([gatekey.Question(key, "campaigns/spring", "write") for key in keys])
        if time.monotonic() > ends:
            raise TimeoutError


def _measure(
    report: Report,
    section: str,
    name: str,
    client: gatekey.Client,
    question: Callable[[int], tuple[str, str, str]],
    rate_goal: float | None,
    p50_goal: float | None,
) -> None:
    check = client.check
    asked = [question(number) for number in range(_ROUNDS)]
    begin = time.perf_counter()
    allowed = sum(check(*each).allowed for each in asked)
    seconds = time.perf_counter() - begin
    if allowed != _ROUNDS:
        raise AssertionError(f"{_ROUNDS - allowed} checks were denied")
    times = []
    for each in asked[:_SAMPLES]:
        begin = time.perf_counter_ns()
        check(*each)
        times.append(time.perf_counter_ns() - begin)
    times.sort()
    report.add(section, f"{name}: per second and core", _ROUNDS / seconds, "/s", rate_goal)
    report.add(section, f"{name}: p50", times[len(times) // 2] / 1e3, "µs", p50_goal, at_least=False)
    report.add(section, f"{name}: p99", times[len(times) * 99 // 100] / 1e3, "µs")


async def _cursor(server: g.Gatekey) -> bytes:
    async with server.channel() as channel:
        call = channel.unary_unary(
            _SYNC,
            request_serializer=cache_service_pb2.SyncRequest.SerializeToString,
            response_deserializer=cache_service_pb2.SyncResponse.FromString,
        )
        response = await call(cache_service_pb2.SyncRequest(), metadata=tuple(server.metadata.items()))
        return bytes(response.cursor)
