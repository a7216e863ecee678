"""Several processes that answer on one port, and several servers on one database."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from gatekey.core.secrets import new_secret
from gatekey.v1 import api_key_service_pb2, member_service_pb2, product_service_pb2

from tests.support.databases import Databases
from tests.support.ports import free_ports
from tests.support.server import PEPPERS, Client, ServerProcess, read_example

WORKERS = 3


def children(pid: int) -> list[int]:
    """The pids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    """Whether a process is there and not just waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def gone(pids: list[int]) -> None:
    """Wait until none of the processes is there."""
    async with asyncio.timeout(20):
        while any(is_running(pid) for pid in pids):
            await asyncio.sleep(0.05)


@pytest.fixture
async def variables(databases: Databases) -> dict[str, str]:
    """For servers on a database of the test's own."""
    return {
        "GATEKEY_DATABASE_URL": await databases.create(),
        "GATEKEY_PEPPERS": PEPPERS,
        "GATEKEY_ROOT_TOKEN": new_secret("gk_"),
    }


@pytest.fixture
async def supervisor(variables: dict[str, str]) -> AsyncIterator[ServerProcess]:
    """A server of several processes."""
    process = await ServerProcess.start({**variables, "GATEKEY_WORKERS": str(WORKERS)})
    yield process
    await process.stop()


def metric(port: int, name: str) -> float:
    """A number that a process tells of itself."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    raise AssertionError(f"{name} is not among the metrics")


async def holder(client: Client, tenant: str) -> api_key_service_pb2.CreateApiKeyResponse:
    """A key of an owner."""
    owner = await client.add_member(f"products/heyoo/tenants/{tenant}", "owner", "owner")
    return await client.create_key(f"products/heyoo/tenants/{tenant}", owner)


async def test_a_revocation_is_over_in_every_worker_when_it_returns(variables: dict[str, str]) -> None:
    ports = free_ports(WORKERS)
    token = variables["GATEKEY_ROOT_TOKEN"]
    server = await ServerProcess.start(
        {**variables, "GATEKEY_METRICS_LISTEN": f"127.0.0.1:{ports}"}, "--workers", str(WORKERS)
    )
    # The kernel deals connections out: with so many, no worker is left without.
    clients = [Client(server.address, token) for _ in range(12 * WORKERS)]
    root = clients[0]
    await root.apply(read_example("heyoo"))
    await root.create_tenant("heyoo", "acme")
    key = await holder(root, "acme")

    async def verdicts() -> set[str]:
        return set(await asyncio.gather(*(client.verdict(key.secret, "campaigns", "read") for client in clients)))

    for _ in range(3):
        assert await verdicts() == {"ALLOWED"}
    hits = 'gatekey_cache_lookups_total{result="hit"}'
    assert all(metric(ports + number, hits) > 0 for number in range(WORKERS)), "a worker answered nothing from memory"
    for turn in range(10):
        name = key.api_key.name
        await clients[turn].keys.DisableApiKey(api_key_service_pb2.DisableApiKeyRequest(name=name))
        assert await verdicts() == {"KEY_DISABLED"}
        await clients[-turn].keys.EnableApiKey(api_key_service_pb2.EnableApiKeyRequest(name=name))
        assert await verdicts() == {"ALLOWED"}
    request = member_service_pb2.RemoveMemberRequest(name=key.api_key.owner, force=True)
    await root.members.RemoveMember(request)
    assert await verdicts() == {"KEY_UNKNOWN"}
    assert all(metric(ports + number, 'gatekey_mode{mode="cached"}') == 1 for number in range(WORKERS))
    for client in clients:
        await client.close()
    assert await server.stop() == 0


@pytest.mark.slow
async def test_a_dead_worker_is_replaced(supervisor: ServerProcess, variables: dict[str, str]) -> None:
    before = children(supervisor.process.pid)
    assert len(before) == WORKERS
    os.kill(before[0], signal.SIGKILL)
    async with asyncio.timeout(20):
        while len(set(children(supervisor.process.pid)) - {before[0]}) < WORKERS:
            await asyncio.sleep(0.05)
    async with asyncio.timeout(20):
        while sum("worker_ready" in line for line in supervisor.output) <= WORKERS:
            await asyncio.sleep(0.05)
    for _ in range(10):
        client = Client(supervisor.address, variables["GATEKEY_ROOT_TOKEN"])
        await client.products.ListProducts(product_service_pb2.ListProductsRequest(), timeout=10)
        await client.close()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_all_end_with_the_supervisor(supervisor: ServerProcess, number: signal.Signals) -> None:
    workers = children(supervisor.process.pid)
    assert await supervisor.stop(number) == 0
    assert not any(is_running(pid) for pid in workers)
    assert "worker_died" not in "".join(supervisor.output)


@pytest.mark.slow
async def test_no_worker_outlives_a_killed_supervisor(supervisor: ServerProcess) -> None:
    workers = children(supervisor.process.pid)
    supervisor.process.kill()
    await gone(workers)


@pytest.mark.slow
async def test_a_second_supervisor_is_refused_the_port(supervisor: ServerProcess, variables: dict[str, str]) -> None:
    for workers in ("1", "2"):
        with pytest.raises(AssertionError, match="cannot listen on"):
            await ServerProcess.start({**variables, "GATEKEY_WORKERS": workers, "GATEKEY_LISTEN": supervisor.address})


@pytest.mark.slow
async def test_workers_that_cannot_start_end_the_supervisor(variables: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        metrics = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(AssertionError, match="GATEKEY_METRICS_LISTEN"):
            await ServerProcess.start({**variables, "GATEKEY_WORKERS": "2", "GATEKEY_METRICS_LISTEN": metrics})


@pytest.mark.slow
async def test_workers_on_an_embedded_database(tmp_path: Path) -> None:
    server = await ServerProcess.start(
        {"GATEKEY_ROOT_TOKEN": (token := new_secret("gk_")), "GATEKEY_DATA_DIR": str(tmp_path / "data")},
        "--workers",
        "2",
    )
    client = Client(server.address, token)
    await client.apply(read_example("heyoo"))
    workers = [
        pid
        for pid in children(server.process.pid)
        if "gatekey_server.runtime.worker" in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    assert len(workers) == 2
    await client.close()
    assert await server.stop() == 0
