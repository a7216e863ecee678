"""A server that stops loses no call, and does not keep anybody waiting."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator

import gatekey
import grpc
import pytest
from gatekey.v1 import check_service_pb2 as pb
from gatekey.v1 import check_service_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.server import PEPPERS, Client, ServerProcess

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def stopped(root: Client, database_url: str) -> AsyncIterator[ServerProcess]:
    """A second server of the shared database, to be stopped."""
    server = await ServerProcess.start({"GATEKEY_DATABASE_URL": database_url, "GATEKEY_PEPPERS": PEPPERS})
    yield server
    await server.kill()


async def test_watches_and_idle_connections_do_not_delay_a_stop(stopped: ServerProcess) -> None:
    async with grpc.aio.insecure_channel(stopped.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        while (await watch.read()).status != SERVING:
            pass
        began = time.monotonic()
        stopping = asyncio.create_task(stopped.stop())
        assert (await watch.read()).status == NOT_SERVING
        with pytest.raises(grpc.RpcError):
            await watch.read()
        assert await watch.code() is grpc.StatusCode.UNAVAILABLE
        assert await stopping == 0
        assert time.monotonic() - began < 3


@pytest.mark.drill
@pytest.mark.parametrize("channels", [1, 8])
async def test_no_call_of_a_plain_client_fails_while_one_of_two_servers_stops(
    root: Client, stopped: ServerProcess, channels: int
) -> None:
    seen: Counter[str] = Counter()
    over = asyncio.Event()
    request = pb.CheckRequest(key="x", resource="links", action="read")
    metadata = (("authorization", f"Bearer {root.token}"),)

    async def load(channel: grpc.aio.Channel) -> None:
        stub = check_service_pb2_grpc.CheckServiceStub(channel)
        while not over.is_set():
            try:
                await stub.Check(request, metadata=metadata, timeout=10)
                seen["decided"] += 1
            except grpc.aio.AioRpcError as error:
                seen[f"{error.code().name} {error.details()}"] += 1

    # Those that come first are connected to first: all calls go to the server that stops.
    target = f"ipv4:{stopped.address},{root.address}"
    options = [("grpc.use_local_subchannel_pool", 1)]
    opened = [grpc.aio.insecure_channel(target, options) for _ in range(channels)]
    loads = [asyncio.create_task(load(channel)) for channel in opened for _ in range(16 // channels)]
    await asyncio.sleep(0.7)
    assert await stopped.stop() == 0
    await asyncio.sleep(0.3)
    over.set()
    await asyncio.gather(*loads)
    for channel in opened:
        await channel.close()
    assert seen.keys() == {"decided"}, seen


@pytest.mark.drill
async def test_no_call_of_our_client_fails_while_one_of_two_servers_stops(root: Client, stopped: ServerProcess) -> None:
    over = asyncio.Event()
    async with gatekey.AsyncClient([stopped.address, root.address], token=root.token, batch=False) as client:

        async def load() -> int:
            decided = 0
            while not over.is_set():
                await client.check("x", "links", "read")
                decided += 1
                await asyncio.sleep(0.002)
            return decided

        loads = [asyncio.create_task(load()) for _ in range(12)]
        await asyncio.sleep(0.7)
        assert await stopped.stop() == 0
        await asyncio.sleep(0.3)
        over.set()
        assert min(await asyncio.gather(*loads)) > 0
