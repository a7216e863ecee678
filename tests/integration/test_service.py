"""The server as a process: its configuration, its start, and a database that goes away."""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from gatekey.core.lease import LEASE_S
from gatekey.core.secrets import new_secret
from gatekey_server.store import schema
from gatekey_server.store.embedded import EmbeddedPostgres
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.databases import Databases
from tests.support.server import (
    GATEKEY,
    PEPPERS,
    Client,
    Problem,
    ServerProcess,
    environment,
    problem_of,
    read_example,
)

OTHER_PEPPERS = "1:" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo1MjM0NTY="
TWO_PEPPERS = f"{PEPPERS},2:" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo1MjM0NTY="


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `gatekey` to its end."""
    return subprocess.run(
        [*GATEKEY, *arguments], env=environment(**variables), capture_output=True, text=True, timeout=60, check=False
    )


async def run_async(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The same without keeping the event loop from its work."""
    return await asyncio.to_thread(run, *arguments, **variables)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"GATEKEY_LISTEN": "nowhere"}, "GATEKEY_LISTEN: is not HOST:PORT"),
        ({"GATEKEY_LISTEN": "127.0.0.1:99999"}, "GATEKEY_LISTEN: is not HOST:PORT"),
        ({"GATEKEY_DATABASE_URL": "mysql://x"}, "GATEKEY_DATABASE_URL: does not start with postgresql://"),
        ({"GATEKEY_DATABASE_URL": "postgresql://x"}, "GATEKEY_PEPPERS (or GATEKEY_PEPPERS_FILE) is required"),
        ({"GATEKEY_PEPPERS": "1:c2VjcmV0LXBlcHBlcg=="}, "GATEKEY_PEPPERS: entry 1 has fewer than 32 bytes"),
        ({"GATEKEY_PEPPERS": "secret-pepper"}, "GATEKEY_PEPPERS: entry 1 is not VERSION:BASE64"),
        ({"GATEKEY_PEPPERS": f"{PEPPERS} {PEPPERS}"}, "GATEKEY_PEPPERS: version 1 is given twice"),
        (
            {"GATEKEY_PEPPERS": PEPPERS, "GATEKEY_PEPPERS_FILE": "/x"},
            "GATEKEY_PEPPERS and GATEKEY_PEPPERS_FILE are both set",
        ),
        ({"GATEKEY_PEPPERS_FILE": "/no/such/file"}, "GATEKEY_PEPPERS_FILE: /no/such/file"),
        ({"GATEKEY_ROOT_TOKEN": "secret-token"}, "GATEKEY_ROOT_TOKEN: is not a service token"),
        ({"GATEKEY_DATABSE_URL": "postgresql://x"}, "GATEKEY_DATABSE_URL is not a variable of Gatekey"),
        ({"GATEKEY_MAX_CONNECTIONS": "0"}, "GATEKEY_MAX_CONNECTIONS"),
        ({"GATEKEY_LOG_LEVEL": "loud"}, "GATEKEY_LOG_LEVEL"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_problems_of_the_configuration_are_told_by_name(
    tmp_path: Path, variables: dict[str, str], expected: str
) -> None:
    result = run("serve", GATEKEY_DATA_DIR=str(tmp_path), **variables)
    assert result.returncode == 1
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert "secret" not in result.stderr
    assert not (tmp_path / "postgres").exists()


def test_all_problems_are_told_at_once() -> None:
    result = run("serve", GATEKEY_LISTEN="nowhere", GATEKEY_LOG_LEVEL="loud", GATEKEY_TYPO="x")
    assert all(name in result.stderr for name in ("GATEKEY_LISTEN", "GATEKEY_LOG_LEVEL", "GATEKEY_TYPO"))


def test_the_transport_that_was_removed_is_named_with_the_reason() -> None:
    result = run("serve", GATEKEY_TRANSPORT="native")
    assert result.returncode != 0
    assert "GATEKEY_TRANSPORT: `native` was removed: pygrpc-native had no author, no TLS" in result.stderr
    assert "Traceback" not in result.stderr


async def test_a_port_that_is_taken(databases: Databases) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = await run_async(
            "serve",
            GATEKEY_LISTEN=address,
            GATEKEY_DATABASE_URL=await databases.create(),
            GATEKEY_PEPPERS=PEPPERS,
        )
    assert result.returncode == 1
    assert f"cannot listen on {address}" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://user:hunter2@127.0.0.1:9/x", "the database cannot be used"),
        ("postgresql://user:hunter2@127.0.0.1:port/x", "GATEKEY_DATABASE_URL: has a port that is no number from 1 to"),
        ("postgresql://user:hunter2@no-such-host.invalid/x", "no-such-host.invalid: "),
        ("postgresql://gatekey:hunter2@/gatekey?host={host}&options=--x", "--x"),
        ("postgresql://gatekey:hunter2@/none?host={host}&port=5432", 'database "none" does not exist'),
        ("postgresql://none:hunter2@/gatekey?host={host}&port=5432", 'role "none" does not exist'),
    ],
)
@pytest.mark.parametrize("command", ["serve", "migrate"])
async def test_a_database_that_cannot_be_used(cluster: EmbeddedPostgres, command: str, url: str, expected: str) -> None:
    host = cluster.dsn().partition("host=")[2].partition("&")[0]
    result = await run_async(command, GATEKEY_DATABASE_URL=url.format(host=host), GATEKEY_PEPPERS=PEPPERS)
    assert result.returncode == 1
    assert expected in result.stderr
    assert "hunter2" not in result.stderr
    assert "Traceback" not in result.stderr
    assert "fault of Gatekey" not in result.stderr


@pytest.mark.slow
async def test_a_database_without_schema_is_migrated_by_hand(databases: Databases) -> None:
    url = await databases.create(template="template1")
    variables = {"GATEKEY_DATABASE_URL": url, "GATEKEY_PEPPERS": PEPPERS}
    refused = await run_async("serve", **variables)
    assert refused.returncode == 1
    assert "run `gatekey migrate`" in refused.stderr
    for _ in range(2):
        migrated = await run_async("migrate", **variables)
        assert migrated.returncode == 0, migrated.stderr
        assert schema.newest_version() in migrated.stdout
    server = await ServerProcess.start(variables)
    assert await server.stop() == 0


@pytest.mark.slow
async def test_no_database_is_made_in_order_to_migrate_it(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    refused = await run_async("migrate", GATEKEY_DATA_DIR=str(data_dir))
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: there is no database: GATEKEY_DATABASE_URL is not set, and ")
    assert refused.stdout == ""
    assert not data_dir.exists()

    server = await ServerProcess.start({"GATEKEY_DATA_DIR": str(data_dir)})
    assert await server.stop() == 0
    migrated = await run_async("migrate", GATEKEY_DATA_DIR=str(data_dir))
    assert (migrated.returncode, migrated.stderr) == (0, "")
    assert schema.newest_version() in migrated.stdout


@pytest.mark.slow
async def test_migrations_at_once_queue(databases: Databases) -> None:
    url = await databases.create(template="template1")
    variables = {"GATEKEY_DATABASE_URL": url, "GATEKEY_PEPPERS": PEPPERS}
    results = await asyncio.gather(*(run_async("migrate", **variables) for _ in range(4)))
    assert [result.returncode for result in results] == [0] * 4, [result.stderr for result in results]


async def test_the_root_token_is_made_once_and_shown_once(databases: Databases) -> None:
    variables = {"GATEKEY_DATABASE_URL": await databases.create(), "GATEKEY_PEPPERS": PEPPERS}
    servers = await asyncio.gather(*(ServerProcess.start(variables) for _ in range(2)))
    shown = [line.strip() for server in servers for line in server.output if line.strip().startswith("gk_")]
    assert len(shown) == 1
    for server in servers:
        client = Client(server.address, shown[0])
        await client.apply(read_example("heyoo"))
        await client.close()
        assert await server.stop() == 0
    logs = [line for server in servers for line in server.output if line.startswith("{")]
    assert logs
    assert not any(shown[0] in line for line in logs)
    again = await ServerProcess.start(variables)
    assert await again.stop() == 0
    assert "gk_" not in "".join(again.output)


@pytest.mark.slow
async def test_a_root_token_from_the_environment_opens_again_what_was_locked(databases: Databases) -> None:
    variables = {"GATEKEY_DATABASE_URL": await databases.create(), "GATEKEY_PEPPERS": PEPPERS}
    for token in (new_secret("gk_"), new_secret("gk_")):
        for _ in range(2):
            server = await ServerProcess.start({**variables, "GATEKEY_ROOT_TOKEN": token})
            client = Client(server.address, token)
            await client.apply(read_example("heyoo"))
            await client.close()
            assert await server.stop() == 0
            assert token not in "".join(server.output)


@pytest.mark.slow
async def test_peppers_change_without_invalidating_keys(databases: Databases) -> None:
    token = new_secret("gk_")
    variables = {"GATEKEY_DATABASE_URL": await databases.create(), "GATEKEY_ROOT_TOKEN": token}
    server = await ServerProcess.start({**variables, "GATEKEY_PEPPERS": PEPPERS})
    client = Client(server.address, token)
    await client.apply(read_example("heyoo"))
    tenant = await client.create_tenant("heyoo", "acme")
    owner = await client.add_member(tenant, "owner", "owner")
    old = (await client.create_key(tenant, owner)).secret
    await client.close()
    await server.stop()

    for wrong, reason in (
        (OTHER_PEPPERS, "pepper 1 is not the one"),
        (TWO_PEPPERS.partition(",")[2], "pepper 1, which is not configured"),
    ):
        result = await run_async("serve", GATEKEY_PEPPERS=wrong, GATEKEY_LISTEN="127.0.0.1:0", **variables)
        assert result.returncode == 1
        assert reason in result.stderr

    server = await ServerProcess.start({**variables, "GATEKEY_PEPPERS": TWO_PEPPERS})
    client = Client(server.address, token)
    new = (await client.create_key(tenant, owner)).secret
    assert [await client.verdict(secret, "campaigns", "read") for secret in (old, new)] == ["ALLOWED", "ALLOWED"]
    await client.close()
    assert await server.stop() == 0


@pytest.fixture
async def fragile(tmp_path: Path) -> AsyncIterator[tuple[EmbeddedPostgres, ServerProcess, Client]]:
    """A server on a PostgreSQL of its own, to be maltreated."""
    postgres = EmbeddedPostgres(tmp_path / "fragile")
    postgres.start()
    try:
        await schema.migrate(postgres.dsn())
        token = new_secret("gk_")
        server = await ServerProcess.start(
            {
                "GATEKEY_DATABASE_URL": postgres.dsn(),
                "GATEKEY_PEPPERS": PEPPERS,
                "GATEKEY_ROOT_TOKEN": token,
                "GATEKEY_STATEMENT_TIMEOUT_S": "1",
                "GATEKEY_ACQUIRE_TIMEOUT_S": "1",
            }
        )
        client = Client(server.address, token)
        try:
            yield postgres, server, client
        finally:
            await client.close()
            assert await server.stop() == 0
    finally:
        postgres.stop()


async def eventually_allowed(client: Client, secret: str) -> None:
    """The key is allowed within some seconds, with nothing but UNAVAILABLE before."""
    for _ in range(100):
        try:
            assert await client.verdict(secret, "campaigns", "read") == "ALLOWED"
        except grpc.RpcError as error:
            assert problem_of(error).code == grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - the only error that may be
            await asyncio.sleep(0.1)
        else:
            return
    pytest.fail("no answer after the database came back")


async def first_problem(client: Client, secret: str) -> Problem:
    """How a check is refused once the lease is over; until then it is answered from memory."""
    async with asyncio.timeout(LEASE_S + 2):
        while True:
            try:
                assert await client.verdict(secret, "campaigns", "read") == "ALLOWED"
            except grpc.RpcError as error:
                return problem_of(error)
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_database_that_goes_away_and_comes_back(
    fragile: tuple[EmbeddedPostgres, ServerProcess, Client],
) -> None:
    postgres, server, client = fragile
    await client.apply(read_example("heyoo"))
    tenant = await client.create_tenant("heyoo", "acme")
    owner = await client.add_member(tenant, "owner", "owner")
    secret = (await client.create_key(tenant, owner)).secret
    health = health_pb2_grpc.HealthStub(client.channel)
    assert await client.verdict(secret, "campaigns", "read") == "ALLOWED"

    postgres.stop()
    problem = await first_problem(client, secret)
    assert (problem.code, problem.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    assert "postgres" not in problem.message
    with pytest.raises(grpc.RpcError) as raised:
        await client.create_tenant("heyoo", "later")
    assert problem_of(raised.value).reason == "DATABASE_UNAVAILABLE"
    async with asyncio.timeout(30):
        async for answer in health.Watch(health_pb2.HealthCheckRequest()):
            if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                break

    postgres.start()
    await eventually_allowed(client, secret)
    async with asyncio.timeout(30):
        async for answer in health.Watch(health_pb2.HealthCheckRequest()):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                break
    assert "Traceback" not in "".join(server.output)


@pytest.mark.slow
async def test_a_database_that_hangs_is_given_up_in_time(
    fragile: tuple[EmbeddedPostgres, ServerProcess, Client],
) -> None:
    postgres, _, client = fragile
    await client.apply(read_example("heyoo"))
    tenant = await client.create_tenant("heyoo", "acme")
    owner = await client.add_member(tenant, "owner", "owner")
    secret = (await client.create_key(tenant, owner)).secret
    assert postgres.pid is not None
    children = Path(f"/proc/{postgres.pid}/task/{postgres.pid}/children").read_text().split()
    stopped = [postgres.pid, *map(int, children)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(20):
            with pytest.raises(grpc.RpcError) as raised:
                await client.check(secret, "campaigns", "read")
        assert problem_of(raised.value).reason == "DATABASE_UNAVAILABLE"
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    await eventually_allowed(client, secret)
