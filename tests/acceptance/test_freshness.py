"""What a mutation promises when it returns, and what becomes of it when servers and their databases fail."""

import asyncio
import signal
import tempfile
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import asyncpg
import grpc
import pytest
from gatekey.core.lease import LEASE_S, MAX_REMOTE_LEASE_S
from gatekey.core.secrets import new_secret
from gatekey.v1 import api_key_service_pb2, audit_service_pb2, check_service_pb2, types_pb2
from gatekey.v1.api_key_service_pb2 import CreateApiKeyResponse
from gatekey.v1.check_service_pb2 import BatchCheckRequest, CheckRequest
from gatekey_server.store.embedded import EmbeddedPostgres

from tests.support.databases import Databases
from tests.support.ports import free_ports
from tests.support.proxy import Proxy
from tests.support.server import PEPPERS, Client, ServerProcess, problem_of, read_example

TOKEN = new_secret("gk_")

# Less than what a mutation would take that waited for something else than a lease.
PATIENCE_S = 2 * LEASE_S


@dataclass(frozen=True)
class Node:
    """A server, a client of it, and where it tells its metrics."""

    process: ServerProcess
    client: Client
    metrics_port: int

    @classmethod
    @asynccontextmanager
    async def start(cls, database_url: str) -> AsyncIterator["Node"]:
        """Start a server."""
        port = free_ports(1)
        process = await ServerProcess.start(
            {
                "GATEKEY_DATABASE_URL": database_url,
                "GATEKEY_PEPPERS": PEPPERS,
                "GATEKEY_ROOT_TOKEN": TOKEN,
                "GATEKEY_METRICS_LISTEN": f"127.0.0.1:{port}",
                # The other one refuses what has waited while the process was stopped, and here an answer is wanted.
                "GATEKEY_TRANSPORT": "grpcio",
            }
        )
        client = Client(process.address, TOKEN)
        try:
            yield cls(process, client, port)
        finally:
            await client.close()
            process.process.send_signal(signal.SIGCONT)
            assert await process.stop() == 0

    def pause(self) -> None:
        """Stop the process where it is."""
        self.process.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on."""
        self.process.process.send_signal(signal.SIGCONT)

    def metric(self, name: str) -> float:
        """A number that the server tells of itself."""
        with urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(f"{name} "):
                    return float(line.split()[1])
        raise AssertionError(f"{name} is not among the metrics")


@pytest.fixture(scope="module")
async def url(databases: Databases) -> str:
    """A database for several servers."""
    return await databases.create()


@pytest.fixture(scope="module")
async def here(url: str) -> AsyncIterator[Node]:
    """A server."""
    async with Node.start(url) as node:
        await node.client.apply(read_example("heyoo"))
        yield node


@pytest.fixture(scope="module")
async def there(url: str) -> AsyncIterator[Node]:
    """Another server on the same database."""
    async with Node.start(url) as node:
        yield node


async def make_key(client: Client, tenant_id: str) -> CreateApiKeyResponse:
    """A tenant with an owner and its key."""
    tenant = await client.create_tenant("heyoo", tenant_id)
    return await client.create_key(tenant, await client.add_member(tenant, "owner", "owner"))


def revocation(key: CreateApiKeyResponse, request_id: str = "") -> api_key_service_pb2.RevokeApiKeyRequest:
    return api_key_service_pb2.RevokeApiKeyRequest(name=key.api_key.name, request_id=request_id)


async def revoke(client: Client, request: api_key_service_pb2.RevokeApiKeyRequest) -> tuple[int, int]:
    """Revoke a key; answers the revision and the milliseconds of the wait, as the trailing metadata tell them."""
    call = client.keys.RevokeApiKey(request, timeout=PATIENCE_S)
    await call
    metadata = {key: str(value) for key, value in await call.trailing_metadata()}
    return int(metadata["gatekey-revision"]), int(metadata["gatekey-receipt-wait-ms"])


async def answer(client: Client, secret: str) -> str:
    """The verdict of a check, or the reason why there is none."""
    try:
        return await client.verdict(secret, "campaigns", "read")
    except grpc.RpcError as error:
        return problem_of(error).reason


async def eventually(client: Client, secret: str, verdict: str) -> None:
    """The verdict comes within some seconds, with nothing but UNAVAILABLE before."""
    async with asyncio.timeout(20):
        while (found := await answer(client, secret)) == "DATABASE_UNAVAILABLE":
            await asyncio.sleep(0.05)
    assert found == verdict


async def wait_for_history(node: Node, resets: int) -> None:
    async with asyncio.timeout(20):
        while node.metric("gatekey_cache_resets_total") < resets:
            await asyncio.sleep(0.05)


# ---------------------------------------------------------------- what a mutation tells


async def test_a_mutation_tells_its_revision_and_how_long_it_waited(here: Node, there: Node, fresh_id: str) -> None:
    client = here.client
    key = await make_key(client, fresh_id)
    before = (await client.check(key.secret, "campaigns", "read")).revision
    revision, wait_ms = await revoke(client, revocation(key))
    assert revision > before
    for node in (here, there):
        question = check_service_pb2.CheckRequest(
            key=key.secret, resource="campaigns", action="read", min_revision=revision
        )
        found = await node.client.checks.Check(question, timeout=10)
        assert not found.allowed
        assert found.revision >= revision

    listing = audit_service_pb2.ListAuditEventsRequest(parent=f"products/heyoo/tenants/{fresh_id}")
    async with asyncio.timeout(20):
        while True:
            events = (await client.audit.ListAuditEvents(listing, timeout=10)).audit_events
            event = next(event for event in events if event.verb == "RevokeApiKey")
            assert event.revision == revision
            if event.HasField("receipt_wait"):
                break
            await asyncio.sleep(0.1)
    assert event.receipt_wait.ToMilliseconds() == wait_ms
    assert not any(other.HasField("receipt_wait") for other in events if other.verb.startswith(("Create", "Add")))


async def test_a_creation_waits_for_nobody(here: Node, fresh_id: str) -> None:
    key = await make_key(here.client, fresh_id)
    request = api_key_service_pb2.CreateApiKeyRequest(
        parent=f"products/heyoo/tenants/{fresh_id}",
        api_key=api_key_service_pb2.ApiKey(
            display_name="Second", owner=key.api_key.owner, mode=types_pb2.ACCESS_MODE_ALL
        ),
    )
    call = here.client.keys.CreateApiKey(request, timeout=10)
    await call
    metadata = dict(await call.trailing_metadata())
    assert "gatekey-revision" in metadata
    assert "gatekey-receipt-wait-ms" not in metadata


async def test_a_revision_that_is_not_reached(here: Node, fresh_id: str) -> None:
    key = await make_key(here.client, fresh_id)
    reached = (await here.client.check(key.secret, "campaigns", "read")).revision
    for min_revision in (reached, reached + 1000):
        question = check_service_pb2.CheckRequest(
            key=key.secret, resource="campaigns", action="read", min_revision=min_revision
        )
        if min_revision == reached:
            assert (await here.client.checks.Check(question, timeout=10)).allowed
            continue
        with pytest.raises(grpc.RpcError) as raised:
            await here.client.checks.Check(question, timeout=10)
        problem = problem_of(raised.value)
        assert (problem.code, problem.reason) == (grpc.StatusCode.UNAVAILABLE, "REVISION_NOT_REACHED")


# ---------------------------------------------------------------- several servers


async def test_what_one_server_was_told_is_over_on_the_others(here: Node, there: Node, fresh_id: str) -> None:
    key = await make_key(here.client, fresh_id)
    clients = (here.client, there.client)
    hits = there.metric('gatekey_cache_lookups_total{result="hit"}')
    for turn in range(10):
        client = clients[turn % 2]
        await client.keys.DisableApiKey(api_key_service_pb2.DisableApiKeyRequest(name=key.api_key.name))
        assert [await answer(each, key.secret) for each in clients * 2] == ["KEY_DISABLED"] * 4
        await client.keys.EnableApiKey(api_key_service_pb2.EnableApiKeyRequest(name=key.api_key.name))
        assert [await answer(each, key.secret) for each in clients * 2] == ["ALLOWED"] * 4
    assert there.metric('gatekey_cache_lookups_total{result="hit"}') > hits, "nothing was answered from memory"


@pytest.mark.slow
async def test_a_stopped_server_is_not_waited_for_and_answers_nothing_stale(
    here: Node, there: Node, fresh_id: str
) -> None:
    key = await make_key(here.client, fresh_id)
    other = await here.client.create_key(f"products/heyoo/tenants/{fresh_id}", key.api_key.owner, name="Other")
    for _ in range(2):
        assert [await answer(there.client, each.secret) for each in (key, other)] == ["ALLOWED"] * 2
    there.pause()
    try:
        request = revocation(key, str(uuid.uuid4()))
        with pytest.raises(grpc.RpcError):
            await here.client.keys.RevokeApiKey(request, timeout=0.3)
        _, wait_ms = await revoke(here.client, request)
        assert wait_ms > 0, "a repetition does not wait"
        await revoke(here.client, revocation(other))
        # These begin after the return, and are there when the server goes on.
        asked = [asyncio.create_task(answer(there.client, each.secret)) for each in (key, other) * 10]
        await asyncio.sleep(0.1)
    finally:
        there.go_on()
    assert set(await asyncio.gather(*asked)) <= {"KEY_REVOKED", "DATABASE_UNAVAILABLE"}
    for each in (key, other):
        await eventually(there.client, each.secret, "KEY_REVOKED")


@pytest.mark.slow
async def test_a_feed_whose_connection_is_half_open(here: Node, url: str, fresh_id: str) -> None:
    key = await make_key(here.client, fresh_id)
    # Not in the test's own directory, whose name may be too long for a socket.
    with tempfile.TemporaryDirectory(prefix="gatekey-") as directory:
        async with Proxy.start(Path(directory), url) as (proxy, through), Node.start(through) as node:
            for _ in range(2):
                assert await answer(node.client, key.secret) == "ALLOWED"
            connections = node.metric("gatekey_change_connections_total")
            proxy.lose_feeds()
            await revoke(here.client, revocation(key))
            assert await answer(node.client, key.secret) in {"KEY_REVOKED", "DATABASE_UNAVAILABLE"}
            await eventually(node.client, key.secret, "KEY_REVOKED")
            async with asyncio.timeout(20):
                while node.metric("gatekey_change_connections_total") == connections:
                    await asyncio.sleep(0.05)
            assert node.metric("gatekey_cache_resets_total") == 1, "where it is level, it goes on from there"


# ---------------------------------------------------------------- another history


class Backups:
    """Copies of a database under servers that go on."""

    def __init__(self, admin: "asyncpg.Connection[asyncpg.Record]", name: str) -> None:
        self._admin = admin
        self._name = name

    async def take(self) -> None:
        """Keep the database as it is now."""
        await self._with_nobody_connected(f"create database {self._name}_backup template {self._name}")

    async def restore(self) -> None:
        """Put what was kept in its place."""
        await self._with_nobody_connected(
            f"alter database {self._name} rename to {self._name}_lost",
            f"alter database {self._name}_backup rename to {self._name}",
        )

    async def _with_nobody_connected(self, *statements: str) -> None:
        await self._admin.execute(f"alter database {self._name} allow_connections false")
        await self._admin.execute(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = $1", self._name
        )
        for statement in statements:
            await self._admin.execute(statement)
        await self._admin.execute(f"alter database {self._name} allow_connections true")


@pytest.fixture
async def admin(cluster: EmbeddedPostgres) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection beside all test databases."""
    connection = await asyncpg.connect(cluster.dsn("postgres"))
    yield connection
    await connection.close()


@pytest.mark.slow
async def test_a_restored_database_is_loaded_anew_without_a_stampede(
    databases: Databases, admin: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    url = await databases.create()
    async with Node.start(url) as node:
        client = node.client
        await client.apply(read_example("heyoo"))
        key = await make_key(client, "acme")
        backups = Backups(admin, url.rpartition("@/")[2].partition("?")[0])
        await backups.take()
        await eventually(client, key.secret, "ALLOWED")
        later = await client.create_key("products/heyoo/tenants/acme", key.api_key.owner, name="Later")
        await revoke(client, revocation(key))
        for _ in range(2):
            assert [await answer(client, each.secret) for each in (key, later)] == ["KEY_REVOKED", "ALLOWED"]
        assert node.metric("gatekey_cache_resets_total") == 1, "a broken connection alone changes nothing"

        # As many as one connection lets through at once: those that wait their turn are loaded later.
        secrets = [key.secret, later.secret, *(new_secret("heyoo_") for _ in range(78))]

        async def answers_of_a_crowd() -> Counter[str]:
            """All secrets asked about while the server stands still, so that it finds them all at once."""
            node.pause()
            asked = [asyncio.create_task(answer(client, secret)) for secret in secrets]
            await asyncio.sleep(0.5)
            node.go_on()
            return Counter(await asyncio.gather(*asked))

        loads = node.metric("gatekey_snapshot_loads_total")
        node.pause()
        await backups.restore()
        await asyncio.sleep(MAX_REMOTE_LEASE_S)
        assert set(await answers_of_a_crowd()) <= {"ALLOWED", "KEY_UNKNOWN", "DATABASE_UNAVAILABLE"}
        await eventually(client, key.secret, "ALLOWED")
        await eventually(client, later.secret, "KEY_UNKNOWN")
        while "DATABASE_UNAVAILABLE" in (again := await answers_of_a_crowd()):
            pass
        assert again == {"ALLOWED": 1, "KEY_UNKNOWN": 79}
        assert node.metric("gatekey_cache_resets_total") == 2
        assert node.metric("gatekey_snapshot_loads_total") - loads < len(secrets)


# ---------------------------------------------------------------- batches


async def test_what_a_batch_does_not_find_in_memory_is_loaded_with_one_query(here: Node) -> None:
    """However many secrets there are, the caller's among them."""
    key = await make_key(here.client, "batch")
    secrets = [key.secret, *(new_secret("heyoo_") for _ in range(999))]
    checks = [CheckRequest(key=secret, resource="campaigns", action="read") for secret in secrets]
    loads = here.metric("gatekey_snapshot_loads_total")
    answer = await here.client.checks.BatchCheck(BatchCheckRequest(checks=checks), timeout=10)
    assert [result.response.allowed for result in answer.results] == [True] + [False] * 999
    assert here.metric("gatekey_snapshot_loads_total") - loads == 1
    # And now they are there, and that they do not exist as well.
    assert (
        (await here.client.checks.BatchCheck(BatchCheckRequest(checks=checks), timeout=10)).results[0].response.allowed
    )
    assert here.metric("gatekey_snapshot_loads_total") - loads == 1
