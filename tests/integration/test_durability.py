"""The embedded database with the whole service around it: killed, interrupted, started again."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from gatekey.cli import local
from gatekey.v1 import api_key_service_pb2

from tests.support.server import Client, ServerProcess, problem_of, read_example

CREATIONS = 100


def postmaster_pid(data_dir: Path) -> int:
    """The pid of the database's first process."""
    return int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])


async def gone(pid: int, timeout_s: float = 10) -> bool:
    """Whether a process ends in time."""
    for _ in range(int(timeout_s / 0.05)):
        if not Path(f"/proc/{pid}").exists() or "(zombie)" in Path(f"/proc/{pid}/status").read_text():
            return True
        await asyncio.sleep(0.05)
    return False


async def start(data_dir: Path) -> tuple[ServerProcess, Client]:
    """A server with its embedded database, and a client with the token that it wrote down."""
    server = await ServerProcess.start({"GATEKEY_DATA_DIR": str(data_dir)})
    config = local.read(data_dir / local.FILE_NAME)
    assert config is not None
    assert config.address == server.address
    return server, Client(server.address, config.token)


@pytest.fixture
async def data_dir(tmp_path: Path) -> AsyncIterator[Path]:
    """A data directory; at the end no postmaster of it is left."""
    path = tmp_path / "data"
    yield path
    assert not (path / "postgres" / "postmaster.pid").exists()


async def test_killed_in_the_middle_of_a_hundred_creations(data_dir: Path) -> None:
    server, client = await start(data_dir)
    await client.apply(read_example("heyoo"))
    tenant = await client.create_tenant("heyoo", "acme")
    owner = await client.add_member(tenant, "owner", "owner")
    acknowledged: list[str] = []
    half = asyncio.Event()

    async def create(number: int) -> None:
        created = await client.create_key(tenant, owner, name=f"{number}")
        acknowledged.append(created.secret)
        if len(acknowledged) >= CREATIONS // 2:
            half.set()

    creations = [asyncio.create_task(create(number)) for number in range(CREATIONS)]
    await half.wait()
    old_postmaster = postmaster_pid(data_dir)
    await server.kill()
    results = await asyncio.gather(*creations, return_exceptions=True)
    await client.close()
    assert CREATIONS // 2 <= len(acknowledged) < CREATIONS
    assert {problem_of(error).code for error in results if isinstance(error, grpc.RpcError)} == {
        grpc.StatusCode.UNAVAILABLE
    }

    server, client = await start(data_dir)
    assert await gone(old_postmaster)
    assert {await client.verdict(secret, "campaigns", "read") for secret in acknowledged} == {"ALLOWED"}
    listed = await client.keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest(parent=tenant, page_size=1000))
    assert len(acknowledged) <= len(listed.api_keys) <= CREATIONS
    await client.close()
    assert await server.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_stopped_and_started_again_it_keeps_everything(data_dir: Path, number: signal.Signals) -> None:
    server, client = await start(data_dir)
    await client.apply(read_example("heyoo"))
    tenant = await client.create_tenant("heyoo", "acme")
    owner = await client.add_member(tenant, "owner", "owner")
    secret = (await client.create_key(tenant, owner)).secret
    postmaster = postmaster_pid(data_dir)
    token = client.token
    await client.close()
    assert await server.stop(number) == 0
    assert await gone(postmaster)

    server, client = await start(data_dir)
    assert client.token == token
    assert await client.verdict(secret, "campaigns", "read") == "ALLOWED"
    await client.close()
    assert await server.stop() == 0
    output = "".join(server.output)
    assert token is not None
    assert token not in output
    assert secret not in output


@pytest.mark.slow
async def test_a_database_that_is_killed_comes_back(data_dir: Path) -> None:
    server, client = await start(data_dir)
    await client.apply(read_example("heyoo"))
    tenant = await client.create_tenant("heyoo", "acme")
    owner = await client.add_member(tenant, "owner", "owner")
    secret = (await client.create_key(tenant, owner)).secret
    first = postmaster_pid(data_dir)
    os.kill(first, signal.SIGKILL)
    reasons = set()
    for _ in range(200):
        try:
            if await client.verdict(secret, "campaigns", "read") == "ALLOWED" and postmaster_pid(data_dir) != first:
                break
        except (grpc.RpcError, FileNotFoundError) as error:
            if isinstance(error, grpc.RpcError):
                reasons.add(problem_of(error).reason)
        await asyncio.sleep(0.05)
    else:
        pytest.fail("the database did not come back")
    # No decision was made meanwhile, or the right one.
    assert reasons <= {"DATABASE_UNAVAILABLE"}
    await client.close()
    assert await server.stop() == 0


@pytest.mark.slow
async def test_without_its_file_the_operator_gets_a_new_root_token(data_dir: Path) -> None:
    server, client = await start(data_dir)
    first = client.token
    await client.close()
    await server.stop()
    (data_dir / local.FILE_NAME).unlink()
    server, client = await start(data_dir)
    assert client.token != first
    await client.apply(read_example("heyoo"))
    await client.close()
    assert await server.stop() == 0


@pytest.mark.slow
async def test_a_second_server_in_the_same_directory_is_refused(data_dir: Path) -> None:
    server, client = await start(data_dir)
    with pytest.raises(AssertionError, match="did not start"):
        await ServerProcess.start({"GATEKEY_DATA_DIR": str(data_dir)})
    await client.apply(read_example("heyoo"))
    await client.close()
    assert await server.stop() == 0


@pytest.mark.slow
async def test_without_its_peppers_it_refuses_to_start(data_dir: Path) -> None:
    server, client = await start(data_dir)
    await client.close()
    await server.stop()
    (data_dir / "peppers").unlink()
    with pytest.raises(AssertionError, match="peppers is gone"):
        await ServerProcess.start({"GATEKEY_DATA_DIR": str(data_dir)})
