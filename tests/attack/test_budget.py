"""How many calls are worked on at once, and what becomes of the others."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from gatekey.v1 import check_service_pb2 as pb
from gatekey.v1.check_service_pb2_grpc import CheckServiceStub
from gatekey_server.rpc.context import Later
from gatekey_server.rpc.dispatcher import Endpoint
from gatekey_server.rpc.health import Health
from gatekey_server.rpc.server import SERVICES
from gatekey_server.rpc.transport import MAX_CONCURRENT_CALLS, MAX_STREAMS, GrpcServer
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.server import problem_of

HEALTH = {"Check": health_pb2.HealthCheckRequest(), "List": health_pb2.HealthListRequest()}
TOKEN = (("authorization", "Bearer known"),)


class Slow:
    """A method that answers when it is told to, some callers at once and others after they were identified."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.under_way = 0
        self.loads: list[asyncio.Future[None]] = []
        method = SERVICES["gatekey.v1.CheckService"].methods_by_name["Check"]
        self.endpoint = Endpoint(method, self._answer, self._identify, lambda _: True, self._at_once)

    async def _identify(self, *_: object) -> object:
        return self

    async def _answer(self, *_: object) -> pb.CheckResponse:
        self.under_way += 1
        try:
            await self.go_on.wait()
        finally:
            self.under_way -= 1
        return pb.CheckResponse()

    def _at_once(self, *_: object) -> Later:
        loading = asyncio.get_running_loop().create_future()
        self.loads.append(loading)
        return Later(loading, self._answer)


@pytest.fixture
async def slow() -> Slow:
    return Slow()


@pytest.fixture
async def address(slow: Slow) -> AsyncIterator[str]:
    health = Health(SERVICES)
    health.set(serving=True)
    server = GrpcServer({"/gatekey.v1.CheckService/Check": slow.endpoint}, health, tls=None, shares_port=False)
    port = server.listen("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    slow.go_on.set()
    await server.stop(1)


async def until(slow: Slow, under_way: int) -> None:
    """Wait until so many calls are being worked on."""
    async with asyncio.timeout(20):
        while slow.under_way != under_way:
            await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_calls_beyond_the_budget_are_told_to_come_again_and_health_is_no_part_of_it(
    slow: Slow, address: str
) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with AsyncExitStack() as opened:
        stubs: list[Any] = [
            CheckServiceStub(await opened.enter_async_context(grpc.aio.insecure_channel(address, options)))
            for _ in range(-(-MAX_CONCURRENT_CALLS // MAX_STREAMS))
        ]
        last = await opened.enter_async_context(grpc.aio.insecure_channel(address, options))
        stub, health = CheckServiceStub(last), health_pb2_grpc.HealthStub(last)
        held = [
            stubs[number // MAX_STREAMS].Check(pb.CheckRequest(), timeout=60) for number in range(MAX_CONCURRENT_CALLS)
        ]
        await until(slow, MAX_CONCURRENT_CALLS)

        for metadata in ((), TOKEN):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.Check(pb.CheckRequest(), timeout=10, metadata=metadata)
            problem = problem_of(raised.value)
            assert (problem.code, problem.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            assert retry_delay_of(raised.value) == pytest.approx(0.1)
        assert slow.loads[0].cancelled(), "nobody waits for what was to be loaded"
        for method, request in HEALTH.items():
            answer = await getattr(health, method)(request, timeout=10)
            statuses = [answer.status] if method == "Check" else [each.status for each in answer.statuses.values()]
            assert set(statuses) == {health_pb2.HealthCheckResponse.SERVING}

        # Whoever goes makes room.
        held.pop().cancel()
        await until(slow, MAX_CONCURRENT_CALLS - 1)
        held.append(stub.Check(pb.CheckRequest(), timeout=60))
        await until(slow, MAX_CONCURRENT_CALLS)
        slow.go_on.set()
        codes = Counter([await call.code() for call in held])
        assert codes == {grpc.StatusCode.OK: MAX_CONCURRENT_CALLS}
        assert await stub.Check(pb.CheckRequest(), timeout=10) == pb.CheckResponse()


def retry_delay_of(error: grpc.aio.AioRpcError) -> float:
    """In seconds, when the server wants the call to be tried again."""
    details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    assert isinstance(details, bytes)
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status_pb2.Status.FromString(details).details)
    wanted_s: float = retry.retry_delay.ToMicroseconds() / 1e6
    return wanted_s
