"""The load generator of `bench/`, which must see what is wrong."""

import asyncio
import dataclasses
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gatekey.v1.check_service_pb2 import CheckRequest, CheckResponse

from bench.load import Plan, Result
from tests.support.databases import Databases
from tests.support.server import PEPPERS, ROOT, Client, ServerProcess, read_example

CHECK = "/gatekey.v1.CheckService/Check"
ALLOWED = CheckResponse(allowed=True).SerializeToString().hex()


@pytest.fixture
async def flooded(databases: Databases, root_token: str) -> AsyncIterator[Client]:
    """A server of its own."""
    server = await ServerProcess.start(
        {
            "GATEKEY_DATABASE_URL": await databases.create(),
            "GATEKEY_PEPPERS": PEPPERS,
            "GATEKEY_ROOT_TOKEN": root_token,
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


@pytest.mark.slow
async def test_the_load_generator_looks_at_every_answer(flooded: Client, tmp_path: Path) -> None:
    key = await make_key(flooded)
    allowed = CheckRequest(key=key, resource="campaigns", action="read").SerializeToString()
    unknown = CheckRequest(key="heyoo_x", resource="campaigns", action="read").SerializeToString()
    plan = await make_plan(flooded, tmp_path, CHECK, allowed, unknown, calls=400, expect=ALLOWED, depth=4)
    found = await run(plan)
    assert (found.right, found.wrong, found.refused) == (200, 200, 0)
    assert 0 < found.percentiles["p50"] <= found.percentiles["p99"] <= found.percentiles["max"]
    nobody = dataclasses.replace(plan, metadata={}, calls=100)
    assert (await run(nobody)).refused == 100
    paced = await run(dataclasses.replace(plan, rate=500, calls=100))
    assert (paced.right, paced.wrong) == (50, 50)
    assert paced.seconds >= 99 / 500
