"""A service that uses the client keeps answering, as documented, whatever happens on the way to the server."""

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gatekey
import grpc
import pytest
from gatekey.core.secrets import new_secret
from gatekey.v1 import api_key_service_pb2, api_key_service_pb2_grpc, check_service_pb2, check_service_pb2_grpc

from tests.client_python.network import Way, free_port, name_server
from tests.client_python.support import PRODUCT, Shop, made, opened
from tests.support.certificates import LOCALHOST, Authority, Pair
from tests.support.cli import Cli, Result
from tests.support.databases import Databases
from tests.support.server import PEPPERS, Client, ServerProcess, read_example

KINDS = ("threads", "event loop")
SYSTEM = "products/gatekey/tenants/system"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of client; how checks travel makes no difference here."""
    return str(request.param)


async def eventually(ask: Callable[[], Awaitable[Any]]) -> Any:
    """The first answer after a time of `Unavailable`s and `DeadlineExceeded`s."""
    for _ in range(100):
        try:
            return await ask()
        except (gatekey.Unavailable, gatekey.DeadlineExceeded):
            await asyncio.sleep(0.1)
    return await ask()


# ---------------------------------------------------------------- slow, cut off, moved


async def test_a_server_that_is_slow(kind: str, root: Client, root_token: str, shop: Shop) -> None:
    async with Way(root.address) as way, opened(kind, way.address, token=root_token) as client:
        assert await made(client.check, shop.key, "campaigns", "read", timeout=10)
        way.jam()
        with pytest.raises(gatekey.DeadlineExceeded):
            await made(client.check, shop.key, "campaigns", "read", timeout=0.2)
        with pytest.raises(gatekey.DeadlineExceeded):
            await made(client.tenant(PRODUCT, shop.tenant).keys.get, shop.name, timeout=0.2)
        way.clear()
        assert await made(client.check, shop.key, "campaigns", "read", timeout=10)


async def test_a_slow_server_delays_only_who_waits_for_it(root: Client, root_token: str, shop: Shop) -> None:
    async with Way(root.address) as way, gatekey.AsyncClient(way.address, token=root_token) as client:
        assert await client.check(shop.key, "campaigns", "read", timeout=10)
        way.jam()
        patient = asyncio.create_task(client.check(shop.key, "campaigns", "read", timeout=30))
        hasty = asyncio.create_task(client.check(shop.key, "campaigns", "read", timeout=0.1))
        gone = asyncio.create_task(client.check(shop.key, "campaigns", "read", timeout=30))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(gatekey.DeadlineExceeded):
            await hasty
        assert not patient.done()
        way.clear()
        assert (await patient).allowed
        assert gone.cancelled()


async def test_a_way_that_is_cut_and_mended(kind: str, root: Client, root_token: str, shop: Shop) -> None:
    async with Way(root.address) as way, opened(kind, way.address, token=root_token) as client:
        assert await made(client.check, shop.key, "campaigns", "read", timeout=10)
        await way.close()
        with pytest.raises(gatekey.Unavailable):
            await made(client.check, shop.key, "campaigns", "read", timeout=10)
        await way.open()
        assert await eventually(lambda: made(client.check, shop.key, "campaigns", "read"))


async def test_a_server_that_moves(kind: str, root: Client, root_token: str, shop: Shop) -> None:
    """The name stands for another address: the client follows when the old one no longer answers."""
    port = free_port()
    async with (
        Way(root.address, "127.0.0.2", port) as old,
        Way(root.address, "127.0.0.3", port) as new,
        name_server("127.0.0.2") as (names, name_port),
        opened(kind, f"dns://127.0.0.1:{name_port}/gatekey.test:{port}", token=root_token, insecure=True) as client,
    ):
        assert await made(client.check, shop.key, "campaigns", "read", timeout=10)
        assert old.passed
        assert not new.passed
        names.address = "127.0.0.3"
        await old.close()
        assert await eventually(lambda: made(client.check, shop.key, "campaigns", "read"))
        assert new.passed


async def test_several_addresses_take_turns_and_stand_in(kind: str, root: Client, root_token: str, shop: Shop) -> None:
    async with AsyncExitStack() as stack:
        one, other = [await stack.enter_async_context(Way(root.address, f"127.0.0.{host}")) for host in (2, 3)]
        async with opened(kind, [one.address, other.address], token=root_token, timeout=10) as client:
            for _ in range(200):
                assert await made(client.check, shop.key, "campaigns", "read")
                if one.passed > 3 and other.passed > 3:
                    break
            else:
                pytest.fail("the addresses do not take turns")
            await one.close()
            for _ in range(10):
                assert await made(client.check, shop.key, "campaigns", "read")


@pytest.mark.parametrize("kind", ["threads", "event loop", "event loop, unbatched"])
async def test_closing_ends_the_waiting(kind: str, root: Client, root_token: str, shop: Shop) -> None:
    async with Way(root.address) as way, opened(kind, way.address, token=root_token, timeout=60) as client:
        assert await made(client.check, shop.key, "campaigns", "read")
        way.jam()
        arrived = way.arrived
        waiting = asyncio.create_task(made(client.check, shop.key, "campaigns", "read"))
        while way.arrived == arrived:
            await asyncio.sleep(0.01)
        await made(client.close)
        with pytest.raises(gatekey.Cancelled):
            await waiting


async def test_a_client_belongs_to_one_event_loop(root: Client, root_token: str, shop: Shop) -> None:
    async def ask(client: gatekey.AsyncClient) -> gatekey.Decision:
        return await client.check(shop.key, "campaigns", "read", timeout=10)

    client = gatekey.AsyncClient(root.address, token=root_token, batch=False)
    assert await ask(client)
    with pytest.raises(RuntimeError, match="event loop of its first call"):
        await asyncio.to_thread(asyncio.run, ask(client))
    await client.close()


async def test_without_a_server(kind: str) -> None:
    async with opened(kind, f"127.0.0.1:{free_port()}", token="gk_x") as client:
        with pytest.raises(gatekey.Unavailable) as raised:
            await made(client.check, "hey_x", "campaigns", "read", timeout=10)
    assert raised.value.reason == ""


# ---------------------------------------------------------------- restarted, with TLS

AUTHORITY, CLIENTS, STRANGER = Authority.make("servers", "clients", "stranger")


@dataclass
class Secured:
    """A server that speaks TLS only, and only with clients who show a certificate."""

    variables: dict[str, str]
    port: int
    files: Path
    process: ServerProcess | None = None

    @property
    def tls(self) -> gatekey.TLS:
        return gatekey.TLS(self.files / "ca.pem", self.files / "client.pem", self.files / "client.key")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.process = await ServerProcess.start({**self.variables, "GATEKEY_LISTEN": self.address})

    async def kill(self) -> None:
        assert self.process is not None
        await self.process.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
async def secured(
    databases: Databases, root_token: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Secured]:
    """One, on a database of its own."""
    files = tmp_path_factory.mktemp("tls")
    certificate, key = AUTHORITY.issue(LOCALHOST).write(files)
    CLIENTS.issue(common_name="service").write(files, "client")
    Pair(AUTHORITY.pem, b"").write(files, "ca")
    Pair(CLIENTS.pem, b"").write(files, "clients")
    Pair(STRANGER.pem, b"").write(files, "stranger")
    variables = {
        "GATEKEY_DATABASE_URL": await databases.create(),
        "GATEKEY_PEPPERS": PEPPERS,
        "GATEKEY_ROOT_TOKEN": root_token,
        "GATEKEY_TLS_CERTIFICATE": str(certificate),
        "GATEKEY_TLS_KEY": str(key),
        "GATEKEY_TLS_CLIENT_CA": str(files / "clients.pem"),
    }
    server = Secured(variables, free_port(), files)
    await server.start()
    yield server
    await server.kill()


@pytest.mark.slow
async def test_tls_and_mutual_tls(
    secured: Secured, kind: str, root_token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(address: Any = secured.address, **arguments: Any) -> Any:
        async with opened(kind, address, **arguments) as client:
            return await made(client.check, "hey_x", "campaigns", "read", timeout=10)

    assert (await ask(token=root_token, tls=secured.tls)).reason is gatekey.Reason.KEY_UNKNOWN
    by_name = dataclasses.replace(secured.tls, server_name="127.0.0.1")
    async with Way(secured.address, "127.0.0.2") as way:
        for addresses in (way.address, [way.address, secured.address]):
            assert (await ask(addresses, token=root_token, tls=by_name)).reason is gatekey.Reason.KEY_UNKNOWN
        with pytest.raises(ValueError, match="server_name"):
            await ask([way.address, secured.address], token=root_token, tls=secured.tls)
    # The certificate stands for no token here, and that is for the server to say.
    with pytest.raises(gatekey.Unauthenticated, match="TOKEN_MISSING"):
        await ask(tls=secured.tls)
    stranger = secured.files / "stranger.pem"
    named = gatekey.TLS(secured.tls.ca, secured.tls.certificate, secured.tls.key, server_name="other.example")
    for wrong in (
        None,
        gatekey.TLS(secured.tls.ca),
        gatekey.TLS(stranger, secured.tls.certificate, secured.tls.key),
        named,
    ):
        with pytest.raises(gatekey.Unavailable):
            await ask(token=root_token, tls=wrong)
    # As the command line has them.
    monkeypatch.setenv("GATEKEY_TOKEN", root_token)
    monkeypatch.setenv("GATEKEY_CA", str(secured.files / "ca.pem"))
    monkeypatch.setenv("GATEKEY_CLIENT_CERTIFICATE", str(secured.files / "client.pem"))
    monkeypatch.setenv("GATEKEY_CLIENT_KEY", str(secured.files / "client.key"))
    assert (await ask()).reason is gatekey.Reason.KEY_UNKNOWN


@pytest.mark.slow
async def test_a_server_that_is_restarted(secured: Secured, root_token: str) -> None:
    """It goes without warning; calls fail quickly until it is back, and then the same clients go on."""
    async with (
        opened("threads", secured.address, token=root_token, tls=secured.tls) as blocking,
        opened("event loop", secured.address, token=root_token, tls=secured.tls) as waiting,
    ):
        clients = blocking, waiting
        for client in clients:
            assert await made(client.products.get, "gatekey")
        await secured.kill()
        for client in clients:
            with pytest.raises(gatekey.Unavailable):
                await made(client.check, "hey_x", "campaigns", "read", timeout=10)
        await secured.start()
        for client in clients:
            decision = await eventually(lambda: made(client.check, "hey_x", "campaigns", "read"))  # noqa: B023
            assert decision.reason is gatekey.Reason.KEY_UNKNOWN


# ---------------------------------------------------------------- replaced

# More than half of what a channel may fail at once is under way when a server stops.
CALLERS = {"threads": 8, "event loop": 50, "event loop, unbatched": 200}


@pytest.mark.drill
async def test_no_call_fails_while_one_of_two_servers_is_replaced(databases: Databases, root_token: str) -> None:
    """Checks alone, in batches and many at once, reads and changes, of clients of each kind."""
    url = await databases.create()
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    variables = {"GATEKEY_DATABASE_URL": url, "GATEKEY_PEPPERS": PEPPERS, "GATEKEY_ROOT_TOKEN": root_token}

    async def start(address: str) -> ServerProcess:
        return await ServerProcess.start({**variables, "GATEKEY_LISTEN": address})

    servers = await asyncio.gather(*map(start, addresses))
    admin = Client(addresses[0], root_token)
    await admin.apply(read_example(PRODUCT))
    await admin.create_tenant(PRODUCT, "acme")
    await admin.close()
    made_calls, stopping = Counter[str](), asyncio.Event()
    failed: list[tuple[str, gatekey.ApiError | gatekey.CheckFailed]] = []

    async def load(name: str, call: Callable[[], Awaitable[Any]]) -> None:
        while not stopping.is_set():
            try:
                results = await call()
            except gatekey.ApiError as error:
                failed.append((name, error))
            else:
                failed.extend((name, each) for each in results or () if isinstance(each, gatekey.CheckFailed))
                made_calls[name] += 1
            await asyncio.sleep(0.002)

    questions = [gatekey.Question("x", "links", "read")] * 5
    async with AsyncExitStack() as stack:
        loads = []
        for kind, callers in CALLERS.items():
            client = await stack.enter_async_context(opened(kind, addresses, token=root_token, timeout=10))

            async def check(client: Any = client) -> None:
                await made(client.check, "x", "links", "read")

            async def ask(client: Any = client) -> Any:
                return await made(client.check_many, questions)

            async def read(client: Any = client) -> None:
                await made(client.products.get, "gatekey")

            async def change(client: Any = client) -> None:
                members = client.tenant(PRODUCT, "acme").members
                added = await made(members.add, uuid.uuid4().hex, "member")
                await made(members.remove, added.name)

            loads += [load(f"{kind}: check", check) for _ in range(callers)]
            loads += [load(f"{kind}: {each.__name__}", each) for each in (ask, read, change)]
        tasks = [asyncio.create_task(each) for each in loads]
        await asyncio.sleep(0.5)
        assert await servers[0].stop() == 0
        servers[0] = await start(addresses[0])
        await asyncio.sleep(1)
        stopping.set()
        await asyncio.gather(*tasks)
    for server in servers:
        await server.stop()
    assert [(name, str(error)) for name, error in failed] == []
    assert len(made_calls) == 12
    assert min(made_calls.values()) > 3, made_calls


# ---------------------------------------------------------------- tokens


async def test_a_token_that_is_rotated(kind: str, root: Client, shop: Shop) -> None:
    created = await root.create_key(
        SYSTEM, mode="RESTRICTED", grants={f"products/{PRODUCT}/checks": ["create"]}, new_machine_user=True
    )
    file = [f"{created.secret}\n"]
    read = 0

    def source() -> str:
        nonlocal read
        read += 1
        return file[0]

    async with opened(kind, root.address, token=source, timeout=10) as client:
        assert await made(client.check, shop.key, "campaigns", "read")
        rotation = api_key_service_pb2.RotateApiKeyRequest(name=created.api_key.name)
        file[0] = (await root.keys.RotateApiKey(rotation, timeout=10)).secret
        answers = await asyncio.gather(*(made(client.check, shop.key, "campaigns", "read") for _ in range(8)))
        assert all(answers)
        assert read == 2
        await root.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=created.api_key.name), timeout=10)
        with pytest.raises(gatekey.Unauthenticated, match="TOKEN_INVALID"):
            await made(client.check, shop.key, "campaigns", "read")


async def test_a_token_may_come_from_a_coroutine(root: Client, root_token: str, shop: Shop) -> None:
    async def source() -> str:
        await asyncio.sleep(0)
        return root_token

    async with gatekey.AsyncClient(root.address, token=source) as client:
        assert await client.check(shop.key, "campaigns", "read", timeout=10)


@pytest.mark.parametrize("token", ["", "two words", "bad\n\ntoken", "tökén"])
async def test_a_source_of_tokens_that_fails(kind: str, token: str) -> None:
    def broken() -> str:
        raise OSError(token)

    for source in (broken, lambda: token):
        async with opened(kind, token=source) as client:
            with pytest.raises(gatekey.Unauthenticated, match="TOKEN_UNAVAILABLE") as raised:
                await made(client.check, "hey_x", "campaigns", "read")
        assert raised.value.__cause__ is not None
    with pytest.raises(ValueError, match="token") as refused:
        await opened(kind, token=token).__aenter__()
    assert not token or token not in str(refused.value)


AROUND = ("", "\n", "\r\n", " \t\v\f")


@pytest.mark.parametrize("start", ["", "\ufeff", "\ufeff ", " \n"])
@pytest.mark.parametrize("end", [*AROUND, "\ufeff\n"])
async def test_what_is_around_a_token_is_left_away(
    kind: str, root: Client, root_token: str, start: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = start + root_token + end
    monkeypatch.setenv("GATEKEY_TOKEN", text)
    for arguments in ({}, {"token": text}, {"token": lambda: text}):
        async with opened(kind, root.address, **arguments) as client:
            assert (await made(client.check, "x", "campaigns", "read")).reason is gatekey.Reason.KEY_UNKNOWN


@pytest.mark.parametrize("wrong", ["\xa0", "\u200b", "\u2028", "\0", "\x7f", "é", " ", "\n", "\x85"])
async def test_what_is_left_in_a_token_is_refused(kind: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By where it came from; the token itself is not told."""
    texts = [f"gk_se{wrong}cret"] + ([f"gk_secret{wrong}", f"{wrong}gk_secret"] if wrong not in " \n\0" else [])
    for text in texts:
        if "\0" not in text:
            monkeypatch.setenv("GATEKEY_TOKEN", text)
            with pytest.raises(ValueError, match=r"^GATEKEY_TOKEN: ") as by_variable:
                await opened(kind).__aenter__()
            assert "cret" not in str(by_variable.value)
        with pytest.raises(ValueError, match=r"^token=: ") as by_argument:
            await opened(kind, token=text).__aenter__()
        assert "cret" not in str(by_argument.value)
        async with opened(kind, token=lambda: text) as client:  # noqa: B023
            with pytest.raises(gatekey.Unauthenticated, match="the function that gives the service token: ") as by_call:
                await made(client.check, "x", "campaigns", "read")
        assert "cret" not in str(by_call.value)
        assert "cret" not in str(by_call.value.__cause__)


# ---------------------------------------------------------------- addresses and the environment


@pytest.mark.parametrize(
    "address", ["gatekey.example:443", "10.0.0.1:50051", "0.0.0.0:1", "dns:///gatekey.example:443"]
)
def test_other_machines_are_not_called_in_plain_text(address: str) -> None:
    with pytest.raises(ValueError, match="plain text"):
        gatekey.Client(address, token="gk_x")
    gatekey.Client(address, token="gk_x", insecure=True)
    gatekey.Client(address, token="gk_x", tls=gatekey.TLS())


@pytest.mark.parametrize("address", ["nowhere", ":1", "localhost:", "http://localhost:1", "localhost:1,localhost:2"])
def test_an_address_that_cannot_be_used(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        gatekey.Client(address, token="gk_x", insecure=True)


async def test_address_and_token_from_the_environment(
    kind: str, root: Client, root_token: str, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="GATEKEY_TOKEN"):
        gatekey.Client()
    monkeypatch.setenv("GATEKEY_ADDRESS", root.address)
    monkeypatch.setenv("GATEKEY_TOKEN", root_token)
    async with opened(kind) as client:
        assert await made(client.check, shop.key, "campaigns", "read", timeout=10)
    with pytest.raises(RuntimeError, match="closed"):
        await made(client.check, shop.key, "campaigns", "read")
    monkeypatch.setenv("GATEKEY_CLIENT_KEY", "client.key")
    with pytest.raises(ValueError, match="GATEKEY_CA"):
        gatekey.Client()


# ---------------------------------------------------------------- processes that fork


def test_a_client_in_a_process_that_forks(root: Client, root_token: str, shop: Shop) -> None:
    """Both clients work on both sides, whether they were used before or not."""
    program = textwrap.dedent(
        f"""
        import asyncio, os, sys, gatekey

        used, unused = gatekey.Client(timeout=20), gatekey.Client(timeout=20)
        loose = gatekey.AsyncClient(timeout=20)
        question = ({shop.key!r}, "campaigns", "read")
        assert used.check(*question)
        child = os.fork()
        assert used.check(*question)
        assert unused.check(*question)
        assert asyncio.run(loose.check(*question))
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            used.close()
        print("done", flush=True)
        os._exit(0)
        """
    )
    variables = {**os.environ, "GATEKEY_ADDRESS": root.address, "GATEKEY_TOKEN": root_token}
    result = subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout) == (0, "done\ndone\n"), result.stderr


# ---------------------------------------------------------------- attempts


@dataclass
class Fake(check_service_pb2_grpc.CheckServiceServicer, api_key_service_pb2_grpc.ApiKeyServiceServicer):
    """A server that fails as it is told, and remembers what it was asked."""

    fails: list[grpc.StatusCode] = field(default_factory=list)
    always: grpc.StatusCode | None = None
    requests: list[Any] = field(default_factory=list)
    address: str = ""

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._fail(request, context)
        return check_service_pb2.CheckResponse(allowed=True, reason=check_service_pb2.CheckResponse.REASON_ALLOWED)

    async def BatchCheck(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._fail(request, context)
        return check_service_pb2.BatchCheckResponse()

    async def ListApiKeys(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Pages that end early, one of which is empty."""
        await self._fail(request, context)
        ids = {"": ["key_1", "key_2"], "1": [], "2": ["key_3"]}[request.page_token]
        next_ = {"": "1", "1": "2", "2": ""}[request.page_token]
        keys = [api_key_service_pb2.ApiKey(name=name) for name in ids]
        return api_key_service_pb2.ListApiKeysResponse(api_keys=keys, next_page_token=next_)

    async def RotateApiKey(self, request: Any, context: Any) -> Any:  # noqa: N802
        seen = [each.request_id for each in self.requests]
        key = api_key_service_pb2.ApiKey(name=request.name)
        await self._fail(request, context)
        if request.request_id in seen:
            return api_key_service_pb2.RotateApiKeyResponse(api_key=key, secret_withheld=True)
        return api_key_service_pb2.RotateApiKeyResponse(api_key=key, secret="hey_new")

    async def _fail(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        code = self.fails.pop(0) if self.fails else self.always
        if code is not None:
            await context.abort(code, "as it was told")


@asynccontextmanager
async def faking() -> AsyncIterator[Fake]:
    """A fake that serves."""
    # A method that it does not implement responds with UNIMPLEMENTED.
    server, fake = grpc.aio.server(), Fake()  # type: ignore[abstract]
    check_service_pb2_grpc.add_CheckServiceServicer_to_server(fake, server)
    api_key_service_pb2_grpc.add_ApiKeyServiceServicer_to_server(fake, server)
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield fake
    finally:
        await server.stop(None)


async def test_calls_are_tried_again_only_where_nobody_answered(kind: str) -> None:
    away, cancelled = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED
    async with faking() as fake, opened(kind, fake.address, token="gk_x", timeout=10) as client:
        fake.fails = [away, cancelled, away]
        assert await made(client.check, "hey_x", "links", "read")
        assert len(fake.requests) == 4
        for code, error in (
            (grpc.StatusCode.INTERNAL, gatekey.InternalError),
            (grpc.StatusCode.RESOURCE_EXHAUSTED, gatekey.ResourceExhausted),
            (grpc.StatusCode.ABORTED, gatekey.Aborted),
            (grpc.StatusCode.UNAUTHENTICATED, gatekey.Unauthenticated),
        ):
            fake.requests.clear()
            fake.fails = [code]
            with pytest.raises(error):
                await made(client.check, "hey_x", "links", "read")
            assert len(fake.requests) == 1


async def test_a_server_that_fails_is_not_asked_ever_more() -> None:
    async with faking() as fake, opened("event loop, unbatched", fake.address, token="gk_x", timeout=20) as client:
        fake.always = grpc.StatusCode.UNAVAILABLE

        async def attempts(calls: int) -> int:
            fake.requests.clear()
            checks = [client.check("hey_x", "links", "read") for _ in range(calls)]
            for error in await asyncio.gather(*checks, return_exceptions=True):
                assert isinstance(error, gatekey.Unavailable)
            return len(fake.requests)

        assert await attempts(1) == 5
        assert 500 <= await attempts(400) < 1200
        assert await attempts(10) == 10


async def test_a_secret_that_got_lost_is_not_taken_for_an_empty_one(kind: str) -> None:
    async with faking() as fake, opened(kind, fake.address, token="gk_x") as client:
        keys = client.tenant("heyoo", "acme").keys
        assert (await made(keys.rotate, "key_1")).secret == "hey_new"
        fake.requests.clear()
        fake.fails = [grpc.StatusCode.UNAVAILABLE]
        with pytest.raises(gatekey.SecretWithheld) as raised:
            await made(keys.rotate, "key_1")
        assert raised.value.metadata == {"name": "products/heyoo/tenants/acme/apiKeys/key_1"}
        first, second = fake.requests
        assert first == second
        assert first.request_id


async def test_a_list_goes_on_after_a_page_that_ends_early(kind: str) -> None:
    async with faking() as fake, opened(kind, fake.address, token="gk_x") as client:
        listed = await made(client.tenant("heyoo", "acme").keys.list)
        assert [key.name for key in listed] == ["key_1", "key_2", "key_3"]
        assert [each.page_size for each in fake.requests] == [200] * 3


async def test_the_command_line_calls_as_the_client_does(tmp_path: Path) -> None:
    async with faking() as fake:
        program = Cli(tmp_path, {"GATEKEY_ADDRESS": fake.address, "GATEKEY_TOKEN": "gk_x"})

        async def run(*words: str, code: int = 0) -> Result:
            fake.requests.clear()
            return await asyncio.to_thread(program, *words, code=code)

        fake.fails = [grpc.StatusCode.UNAVAILABLE]
        lost = await run("keys", "rotate", "heyoo", "acme", "key_1", code=4)
        name = "products/heyoo/tenants/acme/apiKeys/key_1"
        reason = "the connection broke when its secret was on the way (SECRET_LOST)"
        assert lost.err.splitlines()[0] == f"error: {name} was rotated, but {reason}"
        first, second = fake.requests
        assert first == second
        assert str(uuid.UUID(first.request_id)) == first.request_id
        fake.fails = [grpc.StatusCode.UNAVAILABLE]
        listed = (await run("keys", "list", "heyoo", "acme", "--json")).json
        assert [key["name"] for key in listed["apiKeys"]] == ["key_1", "key_2", "key_3"]
        assert [(each.page_size, each.page_token) for each in fake.requests] == [
            (200, ""),
            (200, ""),
            (200, "1"),
            (200, "2"),
        ]


async def test_answers_that_do_not_fit_the_questions_decide_nothing(kind: str) -> None:
    async with faking() as fake, opened(kind, fake.address, token="gk_x") as client:
        with pytest.raises(gatekey.InternalError):
            await made(client.check_many, [gatekey.Question("hey_x", "links", "read")] * 2)


def test_no_secret_is_shown() -> None:
    token = new_secret("gk_")
    with gatekey.Client(token=token) as client:
        transport = client._transport
        shown = [repr(part) for part in (client, transport, transport._tokens, vars(client))]
    assert token not in "".join(shown)
