"""One tenant's crowd does not slow the others down."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import grpc
import pytest
from gatekey.core.secrets import new_secret
from gatekey.v1 import tenant_service_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from tests.support.databases import Databases
from tests.support.server import PEPPERS, Client, ServerProcess, problem_of, read_example

pytestmark = pytest.mark.drill

CROWD = 300
NUMBERS = itertools.count(1)


@pytest.fixture
async def url(databases: Databases) -> str:
    return await databases.create()


@pytest.fixture
async def client(url: str) -> AsyncIterator[Client]:
    """A client of a server of the test's own, which remembers few keys."""
    token = new_secret("gk_")
    server = await ServerProcess.start(
        {"GATEKEY_DATABASE_URL": url, "GATEKEY_PEPPERS": PEPPERS, "GATEKEY_ROOT_TOKEN": token}
    )
    made = Client(server.address, token)
    for product in ("heyoo", "tally"):
        await made.apply(read_example(product))
    yield made
    await made.close()
    assert await server.stop() == 0


async def timed(call: Callable[[], Awaitable[object]], times: int) -> float:
    """The 95th percentile of how long a call takes, in seconds."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        took.append(time.perf_counter() - began)
        await asyncio.sleep(0.01)
    return sorted(took)[int(times * 0.95)]


async def update(client: Client, tenant: str, timeout: float = 10) -> None:
    await client.tenants.UpdateTenant(
        tenant_service_pb2.UpdateTenantRequest(
            tenant=tenant_service_pb2.Tenant(name=tenant, display_name=f"{next(NUMBERS)}"),
            update_mask=FieldMask(paths=["display_name"]),
        ),
        timeout=timeout,
    )


async def test_a_crowd_in_one_tenant_leaves_the_others_their_connections(client: Client, url: str) -> None:
    crowded, quiet = await client.create_tenant("heyoo", "crowded"), await client.create_tenant("tally", "quiet")
    stop, done = asyncio.Event(), 0

    async def insist(crowd: Client) -> None:
        nonlocal done
        while not stop.is_set():
            try:
                await update(crowd, crowded, timeout=60)
                done += 1
            except grpc.RpcError as error:
                assert problem_of(error).reason in {"OVERLOADED", "DATABASE_UNAVAILABLE"}  # noqa: PT017 - of the lock
                await asyncio.sleep(0.1)

    async def check_cold() -> None:
        # A key that nobody has asked for yet is looked up in the database.
        assert await client.verdict(new_secret("tly_"), "usage", "read") == "KEY_UNKNOWN"

    # Of another process, the crowd's lock is waited for with connections of the mutations alone.
    sql = await asyncpg.connect(url)
    # A connection carries 100 calls: else most of the crowd would wait in the client.
    crowds = [client.with_token(client.token) for _ in range(3)]
    try:
        alone = await timed(lambda: update(client, quiet), 50), await timed(check_cold, 50)
        tasks = [asyncio.create_task(insist(crowds[number % len(crowds)])) for number in range(CROWD)]
        await asyncio.sleep(0.5)
        async with sql.transaction():
            await sql.execute("select from tenant where tenant_id = 'crowded' for update")
            locked = await timed(lambda: update(client, quiet), 50), await timed(check_cold, 50)
        busy = await timed(lambda: update(client, quiet), 50), await timed(check_cold, 50)
        stop.set()
        await asyncio.gather(*tasks)
    finally:
        for crowd in crowds:
            await crowd.close()
        await sql.close()
    figures = [f"{mutation * 1e3:.0f}/{check * 1e3:.0f} ms" for mutation, check in (alone, locked, busy)]
    print(f"mutation/cold check p95: alone {figures[0]}, locked {figures[1]}, busy {figures[2]}; crowd {done}")  # noqa: T201 - for the run by hand
    assert done >= CROWD
    # Before, it was 150 times as long as alone for the mutation, and 280 times for the check.
    for crowded_by in (locked, busy):
        assert crowded_by[0] < max(0.3, 15 * alone[0]), figures
        assert crowded_by[1] < max(0.3, 15 * alone[1]), figures
