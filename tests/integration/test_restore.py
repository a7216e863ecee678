"""A restored dump, renamed into place on the same server within a lease: another history, and nothing else new."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import grpc
import pytest
from gatekey.core import clock
from gatekey.core.lease import LEASE_S
from gatekey.core.secrets import new_secret
from gatekey.v1 import api_key_service_pb2, check_service_pb2, member_service_pb2, tenant_service_pb2
from gatekey_server.store.embedded import EmbeddedPostgres, find_binaries

from tests.chaos.proxy import Loss, Proxy
from tests.support.databases import Databases
from tests.support.server import PEPPERS, Client, ServerProcess, problem_of, read_example

TOKEN = new_secret("gk_")
LIST = tenant_service_pb2.ListTenantsRequest(parent="products/heyoo")
KINDS = ("suspended", "suspended-before", "removed", "rotated", "revoked")


class Restore:
    """A deployment whose database is exchanged for an older one, while no server hears of changes."""

    def __init__(self, databases: Databases, cluster: EmbeddedPostgres, directory: Path) -> None:
        self._databases = databases
        self._cluster = cluster
        self._directory = directory
        self._stack = AsyncExitStack()
        self._proxies: list[Proxy] = []
        self._servers: list[ServerProcess] = []
        self.url = ""
        self.secrets: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.members: dict[str, str] = {}

    async def __aenter__(self) -> "Restore":
        self.url = await self._databases.create()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        for server in self._servers:
            faults = [line for line in server.output if "rpc.failed" in line or "background.failed" in line]
            assert faults == [], "a database that is away for a moment is no fault"

    async def start(self) -> Client:
        """Start a server; answers a client of it."""
        directory = self._directory / str(len(self._proxies))
        directory.mkdir(parents=True)
        upstream = Path(parse_qs(urlsplit(self.url).query)["host"][0])
        proxy = Proxy(directory, upstream)
        self._proxies.append(proxy)
        listener = await proxy.listen()
        self._stack.callback(listener.close)
        self._stack.callback(proxy.heal)
        url = f"postgresql://{urlsplit(self.url).netloc}/{self.database}?host={directory}&port=5432"
        process = await ServerProcess.start(
            {"GATEKEY_DATABASE_URL": url, "GATEKEY_PEPPERS": PEPPERS, "GATEKEY_ROOT_TOKEN": TOKEN}
        )
        self._stack.push_async_callback(process.kill)
        self._servers.append(process)
        client = Client(process.address, TOKEN)
        self._stack.push_async_callback(client.close)
        return client

    @property
    def database(self) -> str:
        """The name of the database."""
        return urlsplit(self.url).path[1:]

    async def set_up(self, client: Client) -> None:
        """A tenant with a key for each kind of mutation."""
        await client.apply(read_example("heyoo"))
        for kind in KINDS:
            tenant = await client.create_tenant("heyoo", kind)
            await client.add_member(tenant, "first", "owner")
            self.members[kind] = await client.add_member(tenant, "owner", "owner")
            created = await client.create_key(tenant, self.members[kind])
            self.secrets[kind], self.names[kind] = created.secret, created.api_key.name
        await suspend(client, "suspended-before")

    async def dump(self) -> str:
        """Dump the database and restore it under another name, which is answered."""
        restored = urlsplit(await self._databases.create("template0")).path[1:]
        await self._run("pg_dump", "--format=custom", f"--file={self._file}", self.url)
        await self._run("pg_restore", f"--dbname={self._databases.url(restored)}", str(self._file))
        return restored

    async def restore_in_place(self, *, in_peace: bool) -> None:
        """Restore the dump into the very database, table by table; where others use it meanwhile, that may fail."""
        arguments = ("--clean", "--if-exists", f"--dbname={self.url}", str(self._file))
        await self._run("pg_restore", *arguments, must_succeed=in_peace)

    @property
    def _file(self) -> Path:
        return self._directory / "dump"

    async def _run(self, program: str, *arguments: str, must_succeed: bool = True) -> None:
        bin_dir = os.environ.get("GATEKEY_TEST_POSTGRES_BIN")
        path = shutil.which(program, path=bin_dir or str(find_binaries())) or shutil.which(program)
        assert path, f"{program} is needed"
        process = await asyncio.create_subprocess_exec(path, *arguments)
        assert await process.wait() == 0 or not must_succeed

    async def exchange(self, restored: str) -> None:
        """Put the restored database in the place of the one that is used; no server hears of changes any more."""
        for proxy in self._proxies:
            proxy.lose(Loss.ALL, changes_only=True)
        connection = await asyncpg.connect(self._cluster.dsn("postgres"))
        try:
            await connection.execute(f"alter database {self.database} allow_connections false")
            await connection.fetch(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", self.database
            )
            await connection.execute(f"alter database {self.database} rename to {self.database}_before")
            await connection.execute(f"alter database {restored} rename to {self.database}")
        finally:
            await connection.close()

    async def verdict(self, client: Client, kind: str) -> str:
        """The answer to a check of a key, or why there is none."""
        try:
            return await client.verdict(self.secrets[kind], "campaigns", "read")
        except grpc.RpcError as error:
            return problem_of(error).reason


async def suspend(client: Client, tenant: str) -> None:
    request = tenant_service_pb2.SuspendTenantRequest(name=f"products/heyoo/tenants/{tenant}")
    await client.tenants.SuspendTenant(request, timeout=10)


async def resume(client: Client, tenant: str) -> None:
    request = tenant_service_pb2.ResumeTenantRequest(name=f"products/heyoo/tenants/{tenant}")
    await client.tenants.ResumeTenant(request, timeout=10)


async def until_done(mutate: Callable[[], Awaitable[object]]) -> None:
    """Try again until it is done; nothing but UNAVAILABLE before."""
    async with asyncio.timeout(20):
        while True:
            try:
                await mutate()
                return
            except grpc.RpcError as error:
                assert problem_of(error).code == grpc.StatusCode.UNAVAILABLE, error  # noqa: PT017


@pytest.fixture
async def restore(databases: Databases, cluster: EmbeddedPostgres, tmp_path: Path) -> AsyncIterator[Restore]:
    """A deployment without servers."""
    async with Restore(databases, cluster, tmp_path) as restore:
        yield restore


@pytest.mark.slow
async def test_what_has_returned_after_a_restore_within_a_lease_holds_everywhere(restore: Restore) -> None:
    first = await restore.start()
    await restore.set_up(first)
    restored = await restore.dump()
    # The dump does not know that there is a second server.
    second = await restore.start()
    await resume(first, "suspended-before")
    for _ in range(5):
        # The old history comes further than the new one will.
        await suspend(first, "suspended")
        await resume(first, "suspended")
    clients = (first, second)
    for client in clients:
        for kind in KINDS:
            assert await restore.verdict(client, kind) == "ALLOWED"

    exchanged_at = clock.now()
    await restore.exchange(restored)
    key = api_key_service_pb2
    mutations: dict[str, Callable[[], Awaitable[object]]] = {
        "suspended": lambda: suspend(first, "suspended"),
        # It is suspended already, where it counts.
        "suspended-before": lambda: suspend(first, "suspended-before"),
        "removed": lambda: first.members.RemoveMember(
            member_service_pb2.RemoveMemberRequest(name=restore.members["removed"]), timeout=10
        ),
        "rotated": lambda: first.keys.RotateApiKey(key.RotateApiKeyRequest(name=restore.names["rotated"]), timeout=10),
        "revoked": lambda: first.keys.RevokeApiKey(key.RevokeApiKeyRequest(name=restore.names["revoked"]), timeout=10),
    }
    done_at = []

    async def mutate_and_check(kind: str) -> list[str]:
        await until_done(mutations[kind])
        done_at.append(clock.now())
        return [await restore.verdict(client, kind) for client in clients]

    found = dict(zip(KINDS, await asyncio.gather(*map(mutate_and_check, KINDS)), strict=True))
    assert {kind: verdicts for kind, verdicts in found.items() if "ALLOWED" in verdicts} == {}
    # Else this shows nothing: all leases were over before anything was done.
    assert min(done_at) - exchanged_at < 2 * LEASE_S


@pytest.mark.slow
async def test_a_restore_in_place_is_no_fault(restore: Restore) -> None:
    client = await restore.start()
    await restore.set_up(client)
    await restore.dump()
    await resume(client, "suspended-before")
    assert await restore.verdict(client, "suspended-before") == "ALLOWED"
    codes = set[grpc.StatusCode]()
    stop = asyncio.Event()

    async def go_on(work: Callable[[], Awaitable[object]]) -> None:
        while not stop.is_set():
            try:
                await work()
            except grpc.RpcError as error:
                codes.add(problem_of(error).code)
            await asyncio.sleep(0.002)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(go_on(lambda: client.check(new_secret("hey_"), "campaigns", "read")))
        tasks.create_task(go_on(lambda: suspend(client, "suspended")))
        tasks.create_task(go_on(lambda: client.tenants.ListTenants(LIST, timeout=10)))
        await asyncio.sleep(0.1)
        await restore.restore_in_place(in_peace=False)
        await asyncio.sleep(0.2)
        stop.set()
    await restore.restore_in_place(in_peace=True)
    # In between there are tables without rows: then nobody is known.
    assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.NOT_FOUND}
    await until_done(lambda: suspend(client, "suspended-before"))
    assert await restore.verdict(client, "suspended-before") == "TENANT_SUSPENDED"


@pytest.mark.slow
async def test_min_revision_is_not_reached_by_the_history_that_was_lost(restore: Restore, databases: Databases) -> None:
    first = await restore.start()
    await restore.set_up(first)
    restored = await restore.dump()
    for _ in range(5):
        await suspend(first, "suspended")
        await resume(first, "suspended")
    assert await restore.verdict(first, "suspended") == "ALLOWED"
    await restore.exchange(restored)

    # By hand, for a mutation returns later: as soon as it is committed, somebody may tell the revision.
    sql = await asyncpg.connect(restore.url)
    await sql.execute("update tenant set suspend_time = now() where tenant_id = 'suspended'")
    revision = await sql.fetchval("select current from revision")
    await sql.close()
    request = check_service_pb2.CheckRequest(
        key=restore.secrets["suspended"], resource="campaigns", action="read", min_revision=revision
    )
    try:
        response = await first.checks.Check(request, timeout=10)
    except grpc.RpcError as error:
        assert problem_of(error).code == grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - or a denial
    else:
        assert not response.allowed
