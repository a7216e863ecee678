"""A process that is asked more than it can answer; and the load generator of `bench/`, which must see what is wrong."""

import asyncio
import dataclasses
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from gatekey.v1 import product_service_pb2
from gatekey.v1.check_service_pb2 import BatchCheckRequest, CheckRequest, CheckResponse
from google.rpc import error_details_pb2, status_pb2

from bench.load import Plan, Result
from tests.support.databases import Databases
from tests.support.server import PEPPERS, ROOT, Client, ServerProcess, problem_of, read_example

CHECK, BATCH_CHECK = "/gatekey.v1.CheckService/Check", "/gatekey.v1.CheckService/BatchCheck"
ALLOWED = CheckResponse(allowed=True).SerializeToString().hex()
BATCH = 200


@pytest.fixture
async def native(databases: Databases, root_token: str) -> AsyncIterator[Client]:
    """A server of its own, with the transport that knows how long calls have waited."""
    pytest.importorskip("pygrpc_native")
    server = await ServerProcess.start(
        {
            "GATEKEY_DATABASE_URL": await databases.create(),
            "GATEKEY_PEPPERS": PEPPERS,
            "GATEKEY_ROOT_TOKEN": root_token,
            "GATEKEY_TRANSPORT": "native",
        }
    )
    client = Client(server.address, root_token)
    await client.apply(read_example("heyoo"))
    yield client
    await client.close()
    assert await server.stop() == 0


async def run(plan: Plan) -> Result:
    """Run the load generator as `make bench` does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bench.load"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate(json.dumps(dataclasses.asdict(plan)).encode())
    assert process.returncode == 0
    return Result(**json.loads(output))


async def make_plan(client: Client, directory: Path, path: str, *messages: bytes, **changes: Any) -> Plan:
    bodies = directory / "bodies"
    bodies.write_bytes(b"".join(len(message).to_bytes(4, "big") + message for message in messages))
    metadata = {"authorization": f"Bearer {client.token}"}
    return Plan(address=client.address, path=path, bodies=str(bodies), metadata=metadata, **changes)


async def make_key(client: Client) -> str:
    tenant = await client.create_tenant("heyoo", "acme")
    owner = await client.add_member(tenant, "owner", "owner")
    return (await client.create_key(tenant, owner)).secret


async def test_the_load_generator_looks_at_every_answer(native: Client, tmp_path: Path) -> None:
    key = await make_key(native)
    allowed = CheckRequest(key=key, resource="campaigns", action="read").SerializeToString()
    unknown = CheckRequest(key="heyoo_x", resource="campaigns", action="read").SerializeToString()
    plan = await make_plan(native, tmp_path, CHECK, allowed, unknown, calls=400, expect=ALLOWED, depth=4)
    found = await run(plan)
    assert (found.right, found.wrong, found.refused) == (200, 200, 0)
    assert 0 < found.percentiles["p50"] <= found.percentiles["p99"] <= found.percentiles["max"]
    nobody = dataclasses.replace(plan, metadata={}, calls=100)
    assert (await run(nobody)).refused == 100
    paced = await run(dataclasses.replace(plan, rate=500, calls=100))
    assert (paced.right, paced.wrong) == (50, 50)
    assert paced.seconds >= 99 / 500


async def test_a_flood_is_cut_and_the_rest_goes_on(native: Client, tmp_path: Path) -> None:
    key = await make_key(native)
    check = CheckRequest(key=key, resource="campaigns", action="read")
    message = BatchCheckRequest(checks=[check] * BATCH).SerializeToString()
    # A few times what can be answered, whatever the machine is.
    plan = await make_plan(native, tmp_path, BATCH_CHECK, message, expect="0a", seconds=3, connections=32, depth=64)
    flood = asyncio.create_task(run(plan))
    refusals: list[grpc.aio.AioRpcError] = []
    while not flood.done():
        calls = [native.checks.Check(check, timeout=10) for _ in range(20)]
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, grpc.aio.AioRpcError):
                refusals.append(answer)
            else:
                assert isinstance(answer, CheckResponse)
                assert answer.allowed
        # Administration is not refused.
        request = product_service_pb2.GetProductRequest(name="products/heyoo")
        assert (await native.products.GetProduct(request, timeout=10)).name
    found = await flood
    assert found.right > 0
    assert found.refused > 0
    assert found.wrong == 0
    for refusal in refusals:
        problem = problem_of(refusal)
        assert (problem.code, problem.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert retry_delay_ms(refusal) > 0
    assert (await native.checks.Check(check, timeout=10)).allowed


def retry_delay_ms(error: grpc.aio.AioRpcError) -> float:
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value if isinstance(value, bytes) else value.encode())
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    return float(retry.retry_delay.ToMilliseconds())
