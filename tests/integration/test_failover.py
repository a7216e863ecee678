"""A standby that takes the primary's place: what was acknowledged stays, and the former primary does not count."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from gatekey.core import clock
from gatekey.core.secrets import new_secret
from gatekey.v1 import api_key_service_pb2
from gatekey.v1.api_key_service_pb2 import CreateApiKeyResponse
from gatekey_server.store.embedded import EmbeddedPostgres
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.replication import Pair, url
from tests.support.server import PEPPERS, Client, ServerProcess, problem_of, read_example

KEYS = 60
TOKEN = new_secret("gk_")


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    """A primary and its synchronous standby."""
    async with Pair.start(tmp_path) as pair:
        yield pair


class Servers:
    """Servers of one deployment, each with its own way to the database."""

    def __init__(self) -> None:
        self._clients: list[Client] = []
        self._processes: list[ServerProcess] = []

    async def start(self, *databases: EmbeddedPostgres) -> Client:
        """Start one that knows these databases, in this order; answers a client of it."""
        process = await ServerProcess.start(
            {
                "GATEKEY_DATABASE_URL": url(*databases),
                "GATEKEY_PEPPERS": PEPPERS,
                "GATEKEY_ROOT_TOKEN": TOKEN,
                "GATEKEY_STATEMENT_TIMEOUT_S": "1",
                # The other one refuses calls when the machine is busy.
                "GATEKEY_TRANSPORT": "grpcio",
            }
        )
        self._processes.append(process)
        client = Client(process.address, TOKEN)
        self._clients.append(client)
        return client

    async def stop(self) -> None:
        """Stop all."""
        for client in self._clients:
            await client.close()
        for process in self._processes:
            # The database is away for some: they would try for a while to take their leave.
            await process.kill()
            assert "Traceback" not in "".join(process.output)


@pytest.fixture
async def servers(pair: Pair) -> AsyncIterator[Servers]:
    """No servers yet."""
    servers = Servers()
    yield servers
    await servers.stop()


async def make_keys(client: Client, count: int) -> list[CreateApiKeyResponse]:
    await client.apply(read_example("heyoo"))
    tenant = await client.create_tenant("heyoo", "acme")
    owner = await client.add_member(tenant, "owner", "owner")
    return [await client.create_key(tenant, owner, name=f"Key {number}") for number in range(count)]


def revocation(key: CreateApiKeyResponse, request_id: str = "") -> api_key_service_pb2.RevokeApiKeyRequest:
    return api_key_service_pb2.RevokeApiKeyRequest(name=key.api_key.name, request_id=request_id)


async def revoke(client: Client, key: CreateApiKeyResponse) -> None:
    await client.keys.RevokeApiKey(revocation(key), timeout=10)


async def until_revoked(client: Client, key: CreateApiKeyResponse) -> None:
    """Try again until it is done; nothing but UNAVAILABLE before."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await revoke(client, key)
            except grpc.RpcError as error:
                assert problem_of(error).code == grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - the only one that may be
            await asyncio.sleep(0.05)


async def answer(client: Client, key: CreateApiKeyResponse) -> str:
    """The verdict of a check, or the reason why there is none."""
    try:
        return await client.verdict(key.secret, "campaigns", "read")
    except grpc.RpcError as error:
        return problem_of(error).reason


@dataclass(frozen=True)
class Answer:
    """What a check was answered."""

    key: int
    began_at: float
    verdict: str


class Load:
    """Checks and revocations that go on whatever happens, and when each began and ended."""

    def __init__(self, clients: list[Client], keys: list[CreateApiKeyResponse]) -> None:
        self._clients = clients
        self._keys = keys
        self.answers: list[Answer] = []
        self.tried: set[int] = set()
        self.revoked_at: dict[int, float] = {}
        """When the revocation of a key returned."""

    async def check(self) -> None:
        """Check keys at random for ever."""
        while True:
            number = random.randrange(len(self._keys))  # noqa: S311
            began_at = clock.now()
            verdict = await answer(random.choice(self._clients), self._keys[number])  # noqa: S311
            self.answers.append(Answer(number, began_at, verdict))
            await asyncio.sleep(0.002)

    async def revoke(self, numbers: Iterable[int]) -> None:
        """Revoke keys one after the other, each once."""
        for number in numbers:
            self.tried.add(number)
            with suppress(grpc.RpcError):
                await revoke(random.choice(self._clients), self._keys[number])  # noqa: S311
                self.revoked_at[number] = clock.now()
            await asyncio.sleep(0.03)

    def violations(self) -> list[Answer]:
        """Checks that began after the return of a revocation and did not deny for it, or denied without cause."""
        return [
            found
            for found in self.answers
            if found.verdict
            not in {
                "DATABASE_UNAVAILABLE",
                *(["ALLOWED"] if found.began_at < self.revoked_at.get(found.key, float("inf")) else []),
                *(["KEY_REVOKED"] if found.key in self.tried else []),
            }
        ]


@pytest.mark.slow
async def test_a_failover_undoes_nothing_that_was_acknowledged(pair: Pair, servers: Servers) -> None:
    clients = [await servers.start(pair.primary, pair.standby) for _ in range(2)]
    keys = await make_keys(clients[0], KEYS)
    with pytest.raises(AssertionError, match="the database cannot be used"):
        # A hot standby would answer, and is behind.
        await servers.start(pair.standby)
    load = Load(clients, keys)
    async with asyncio.TaskGroup() as tasks:
        checking = [tasks.create_task(load.check()) for _ in range(4)]
        revoking = [tasks.create_task(load.revoke(range(first, KEYS - 2, 2))) for first in range(2)]
        while len(load.revoked_at) < KEYS // 4:
            await asyncio.sleep(0.01)
        pair.kill_primary()
        before = len(load.revoked_at)
        await pair.promote()
        for client in clients:
            await until_revoked(client, keys[-1])
        await load.revoke([KEYS - 1])
        await asyncio.wait(revoking)
        for task in checking:
            task.cancel()
    assert load.violations() == []
    assert len(load.revoked_at) > before
    for client in clients:
        assert {await answer(client, keys[number]) for number in load.revoked_at} == {"KEY_REVOKED"}
        assert await answer(client, keys[-2]) == "ALLOWED"


@pytest.mark.slow
async def test_a_former_primary_answers_and_acknowledges_nothing(pair: Pair, servers: Servers) -> None:
    # The second one prefers the other database, which does not count until it is promoted.
    left_behind, moving = await servers.start(pair.primary), await servers.start(pair.standby, pair.primary)
    first, second, third, kept = keys = await make_keys(moving, 4)
    for client in (left_behind, moving):
        assert [await answer(client, key) for key in keys] == ["ALLOWED"] * len(keys)

    await pair.promote()
    request = revocation(first, str(uuid.uuid4()))
    with pytest.raises(grpc.RpcError):
        # Whoever gives up waiting for the standby leaves behind a commit that only this server knows.
        await left_behind.keys.RevokeApiKey(request, timeout=0.3)
    await asyncio.sleep(0.1)
    with pytest.raises(grpc.RpcError):
        await left_behind.keys.RevokeApiKey(request, timeout=10)

    # Once the second is done where it counts, so is the third, and never anywhere else.
    for key in (second, third):
        await until_revoked(moving, key)
    assert [await answer(moving, key) for key in (third, kept)] == ["KEY_REVOKED", "ALLOWED"]
    assert [await answer(left_behind, key) for key in keys] == ["DATABASE_UNAVAILABLE"] * len(keys)
    health = health_pb2_grpc.HealthStub(left_behind.channel)
    async with asyncio.timeout(10):
        async for told in health.Watch(health_pb2.HealthCheckRequest()):
            if told.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                break
