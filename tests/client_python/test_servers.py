"""Servers that are protected by the helpers: FastAPI, Starlette and gRPC, and the example service end to end."""

import asyncio
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

import gatekey
import grpc
import httpx
import pytest
from fastapi import FastAPI, Request
from gatekey.core.secrets import new_secret
from gatekey.fastapi import Credential, KeyGuard, decision_of, requires
from gatekey.grpc import AsyncKeyInterceptor, KeyInterceptor, Requirement, current_decision
from gatekey.starlette import KeyMiddleware
from gatekey.starlette import Requirement as HttpRequirement
from gatekey.v1 import api_key_service_pb2 as keys_pb
from gatekey.v1 import tenant_service_pb2 as tenants_pb
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.requests import Request as StarletteRequest
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from tests.client_python.network import Way, free_port
from tests.client_python.support import PRODUCT, Shop
from tests.support.server import ROOT, Client, environment, problem_of

Get = Callable[..., Awaitable[httpx.Response]]


@pytest.fixture
async def gate(root: Client, root_token: str) -> AsyncIterator[gatekey.AsyncClient]:
    """The client of a protected server."""
    async with gatekey.AsyncClient(root.address, token=root_token, timeout=10) as client:
        yield client


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[Get]:
    """Calls an application with a key, in whatever header."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:

        async def get(path: str, key: str | None = None, **headers: str) -> httpx.Response:
            return await http.get(path, headers={"authorization": f"Bearer {key}", **headers} if key else headers)

        yield get


def missing(response: httpx.Response) -> Any:
    return response.json()["detail"]["missing_permissions"]


# ---------------------------------------------------------------- FastAPI


def fast_app(guard: KeyGuard) -> FastAPI:
    app = FastAPI()

    @app.get("/tenants/{tenant}/campaigns/{campaign}")
    async def read(
        request: Request,
        campaign: str,
        decision: Annotated[gatekey.Decision, requires(guard, "campaigns/{campaign}", "read", tenant="{tenant}")],
    ) -> dict[str, str]:
        assert decision_of(request) == decision
        return {"campaign": campaign, "tenant": decision.tenant}

    @app.get("/paths/{campaign:path}", dependencies=[requires(guard, "campaigns/{campaign}", "write")])
    async def write() -> None:
        pass

    @app.get(
        "/computed", dependencies=[requires(guard, lambda request: f"campaigns/{request.query_params['c']}", "read")]
    )
    async def computed() -> None:
        pass

    return app


async def test_fastapi(gate: gatekey.AsyncClient, shop: Shop) -> None:
    async with serving(fast_app(KeyGuard(gate, product=PRODUCT))) as get:
        response = await get(f"/tenants/{shop.tenant}/campaigns/c1", shop.reader)
        assert (response.status_code, response.json()) == (200, {"campaign": "c1", "tenant": shop.tenant})
        assert (await get("/computed?c=c1", shop.reader)).status_code == 200

        response = await get("/paths/c1", shop.reader)
        assert response.status_code == 403
        assert response.json()["detail"]["reason"] == "KEY_PERMISSION_MISSING"
        assert missing(response) == [{"resource": "campaigns/c1", "action": "write"}]
        response = await get("/tenants/elsewhere/campaigns/c1", shop.reader)
        assert (response.status_code, response.json()["detail"]["reason"]) == (403, "TENANT_MISMATCH")

        for key, reason in ((None, "KEY_MISSING"), (new_secret("hey_"), "KEY_UNKNOWN"), (" ", "KEY_MALFORMED")):
            response = await get("/paths/c1", key)
            assert (response.status_code, response.json()["detail"]["reason"]) == (401, reason)
            assert response.headers["www-authenticate"] == "Bearer"
        response = await get("/paths/c1", authorization=f"Basic {shop.key}")
        assert (response.status_code, response.json()["detail"]["reason"]) == (401, "KEY_MALFORMED")


@pytest.mark.parametrize(
    "path", ["/paths/c1/links", "/paths/", "/paths/%2E%2E", "/paths/*", "/paths/a%2Fb/c", "/computed?c=*"]
)
async def test_what_a_client_sends_does_not_lead_elsewhere(gate: gatekey.AsyncClient, shop: Shop, path: str) -> None:
    async with serving(fast_app(KeyGuard(gate, product=PRODUCT))) as get:
        response = await get(path, shop.key)
        assert (response.status_code, response.json()["detail"]["reason"]) == (400, "RESOURCE_INVALID")


async def test_a_key_of_another_product_is_unknown(gate: gatekey.AsyncClient, shop: Shop) -> None:
    async with serving(fast_app(KeyGuard(gate, product="bitsy"))) as get:
        response = await get("/paths/c1", shop.key)
        assert (response.status_code, response.json()["detail"]["reason"]) == (401, "KEY_UNKNOWN")


async def test_a_product_with_a_header_of_its_own(gate: gatekey.AsyncClient, shop: Shop) -> None:
    app = fast_app(KeyGuard(gate, product=PRODUCT, credential=Credential("api-key", "")))
    async with serving(app) as get:
        assert (await get("/paths/c1", **{"api-key": shop.key})).status_code == 200
        response = await get("/paths/c1", shop.key)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, 'ApiKey header="api-key"')
        schemes = (await get("/openapi.json")).json()["components"]["securitySchemes"]
        assert [(scheme["in"], scheme["name"]) for scheme in schemes.values()] == [("header", "api-key")]
    async with serving(fast_app(KeyGuard(gate))) as get:
        schemes = (await get("/openapi.json")).json()["components"]["securitySchemes"]
        assert [scheme["scheme"] for scheme in schemes.values()] == ["bearer"]


async def test_where_no_decision_is_made_nobody_is_served(
    root: Client, root_token: str, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        Way(root.address) as way,
        gatekey.AsyncClient(way.address, token=root_token, timeout=10) as client,
        serving(fast_app(KeyGuard(client))) as get,
    ):
        assert (await get("/paths/c1", shop.key)).status_code == 200
        await way.close()
        response = await get("/paths/c1", shop.key)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["detail"]["reason"] == "UNDECIDED"
    assert "UNAVAILABLE" in caplog.text
    assert shop.key not in caplog.text


class Exhausted(gatekey.AsyncClient):
    """A client whose server has had enough."""

    async def check(self, *_: Any, **__: Any) -> gatekey.Decision:
        raise gatekey.ResourceExhausted("enough")


async def test_too_many_requests() -> None:
    async with serving(fast_app(KeyGuard(Exhausted(token="gk_x"), credential=Credential()))) as get:
        response = await get("/paths/c1", "hey_x")
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")


# ---------------------------------------------------------------- Starlette


async def show(request: StarletteRequest) -> JSONResponse:
    return JSONResponse({"tenant": decision_of(request).tenant})


async def talk(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text(decision_of(socket).tenant)
    await socket.close()


async def test_starlette_with_a_need_of_each_route(gate: gatekey.AsyncClient, shop: Shop) -> None:
    guard = KeyGuard(gate, product=PRODUCT)
    middleware = [Middleware(KeyMiddleware, guard=guard, requirement=HttpRequirement("campaigns/{campaign}", "write"))]
    async with serving(Starlette(routes=[Route("/{campaign}", show, middleware=middleware)])) as get:
        response = await get("/c1", shop.key)
        assert (response.status_code, response.json()) == (200, {"tenant": shop.tenant})
        response = await get("/c1", shop.reader)
        assert (response.status_code, missing(response)) == (403, [{"resource": "campaigns/c1", "action": "write"}])
        response = await get("/c1")
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")


def need_of(request: HTTPConnection) -> HttpRequirement | None:
    return None if request.url.path == "/open" else HttpRequirement("campaigns", "write")


async def unchecked(request: StarletteRequest) -> JSONResponse:
    with pytest.raises(LookupError):
        decision_of(request)
    return JSONResponse({})


async def test_starlette_with_a_need_of_each_request(gate: gatekey.AsyncClient, shop: Shop) -> None:
    app = Starlette(
        routes=[Route("/", show), Route("/open", unchecked), WebSocketRoute("/talk", talk)],
        middleware=[Middleware(KeyMiddleware, guard=KeyGuard(gate, product=PRODUCT), requirement=need_of)],
    )
    async with serving(app) as get:
        assert [(await get("/", key)).status_code for key in (shop.key, shop.reader, None)] == [200, 403, 401]
        assert (await get("/open")).status_code == 200

    async def socket(key: str) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        messages = iter([{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}])

        async def receive() -> Any:
            return next(messages)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "websocket", "path": "/talk", "headers": [(b"authorization", f"Bearer {key}".encode())]}
        await app(scope, receive, send)
        return sent

    assert [message.get("text") for message in await socket(shop.key)][1] == shop.tenant
    assert await socket(shop.reader) == [{"type": "websocket.close", "code": 1008, "reason": "KEY_PERMISSION_MISSING"}]


# ---------------------------------------------------------------- gRPC

SERVICE = "shop.v1.Campaigns"
NEEDS = {
    f"/{SERVICE}/Get": Requirement("campaigns/{name}", "read", "{etag}"),
    f"/{SERVICE}/Watch": Requirement("campaigns/{name}", "write"),
    f"/{SERVICE}/Fill": Requirement("campaigns", "read"),
    f"/{SERVICE}/Talk": Requirement("campaigns", "write"),
    "/shop.v1.Open/*": None,
}


def named() -> tenants_pb.Tenant:
    return tenants_pb.Tenant(name=current_decision().tenant)


def unnamed() -> tenants_pb.Tenant:
    try:
        return named()
    except LookupError:
        return tenants_pb.Tenant(name="nobody")


class Blocking:
    """Methods of each kind, for threads."""

    def Get(self, _: Any, __: Any) -> tenants_pb.Tenant:  # noqa: N802
        return named()

    def Watch(self, _: Any, __: Any) -> Iterator[tenants_pb.Tenant]:  # noqa: N802
        yield named()
        yield named()

    def Fill(self, requests: Iterator[Any], _: Any) -> tenants_pb.Tenant:  # noqa: N802
        assert len(list(requests)) == 2
        return named()

    def Talk(self, requests: Iterator[Any], _: Any) -> Iterator[tenants_pb.Tenant]:  # noqa: N802
        for _ in requests:
            yield named()

    def Open(self, _: Any, __: Any) -> tenants_pb.Tenant:  # noqa: N802
        return unnamed()


class Waiting:
    """Methods of each kind, for event loops."""

    async def Get(self, _: Any, __: Any) -> tenants_pb.Tenant:  # noqa: N802
        return named()

    async def Watch(self, _: Any, context: Any) -> None:  # noqa: N802
        await context.write(named())
        await context.write(named())

    async def Fill(self, requests: AsyncIterator[Any], _: Any) -> tenants_pb.Tenant:  # noqa: N802
        assert len([each async for each in requests]) == 2
        return named()

    async def Talk(self, requests: AsyncIterator[Any], _: Any) -> AsyncIterator[tenants_pb.Tenant]:  # noqa: N802
        async for _ in requests:
            yield named()

    async def Open(self, _: Any, __: Any) -> tenants_pb.Tenant:  # noqa: N802
        return unnamed()


def register(server: Any, servicer: Any) -> None:
    codec = tenants_pb.Tenant.FromString, tenants_pb.Tenant.SerializeToString
    handlers = {
        "Get": grpc.unary_unary_rpc_method_handler(servicer.Get, *codec),
        "Watch": grpc.unary_stream_rpc_method_handler(servicer.Watch, *codec),
        "Fill": grpc.stream_unary_rpc_method_handler(servicer.Fill, *codec),
        "Talk": grpc.stream_stream_rpc_method_handler(servicer.Talk, *codec),
        "Unheard": grpc.unary_unary_rpc_method_handler(servicer.Get, *codec),
    }
    opened = {"Open": grpc.unary_unary_rpc_method_handler(servicer.Open, *codec)}
    for name, methods in ((SERVICE, handlers), ("shop.v1.Open", opened)):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))


@pytest.fixture(params=["threads", "event loop"])
async def campaigns(request: pytest.FixtureRequest, root: Client, root_token: str) -> AsyncIterator[grpc.aio.Channel]:
    """A connection to a protected server of each kind."""
    if request.param == "threads":
        blocking = gatekey.Client(root.address, token=root_token, timeout=10)
        # One thread, which would show what it has kept of an earlier call.
        pool = ThreadPoolExecutor(1)
        server: Any = grpc.server(pool, interceptors=[KeyInterceptor(blocking, NEEDS, product=PRODUCT)])
        register(server, Blocking())
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        async with grpc.aio.insecure_channel(address) as channel:
            yield channel
        await asyncio.to_thread(server.stop(None).wait)
        pool.shutdown()
        blocking.close()
    else:
        async with gatekey.AsyncClient(root.address, token=root_token, timeout=10) as client:
            server = grpc.aio.server(interceptors=[AsyncKeyInterceptor(client, NEEDS, product=PRODUCT)])
            register(server, Waiting())
            address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            await server.start()
            async with grpc.aio.insecure_channel(address) as channel:
                yield channel
            await server.stop(None)


async def call(channel: grpc.aio.Channel, method: str, key: str | None, **fields: Any) -> list[str]:
    """The names that a method of any kind answers."""
    service, _, name = method.rpartition("/")
    codec = tenants_pb.Tenant.SerializeToString, tenants_pb.Tenant.FromString
    metadata = [("authorization", f"Bearer {key}")] if key else None
    request, path = tenants_pb.Tenant(**fields), f"/{service or SERVICE}/{name}"
    if name == "Watch":
        return [each.name async for each in channel.unary_stream(path, *codec)(request, metadata=metadata, timeout=10)]
    if name == "Talk":
        answers = channel.stream_stream(path, *codec)(iter([request] * 2), metadata=metadata, timeout=10)
        return [each.name async for each in answers]
    if name == "Fill":
        return [(await channel.stream_unary(path, *codec)(iter([request] * 2), metadata=metadata, timeout=10)).name]
    return [(await channel.unary_unary(path, *codec)(request, metadata=metadata, timeout=10)).name]


async def test_grpc(campaigns: grpc.aio.Channel, shop: Shop) -> None:
    assert await call(campaigns, "Get", shop.reader, name="c1", etag=shop.tenant) == [shop.tenant]
    assert await call(campaigns, "Watch", shop.key, name="c1") == [shop.tenant] * 2
    assert await call(campaigns, "Fill", shop.reader) == [shop.tenant]
    assert await call(campaigns, "Talk", shop.key) == [shop.tenant] * 2
    # What a call has learned of its key is not known to the next one.
    assert await call(campaigns, "shop.v1.Open/Open", shop.key) == ["nobody"]


@pytest.mark.parametrize(
    ("method", "given", "fields", "code", "reason"),
    [
        ("Get", "reader", {"name": "c1", "etag": "elsewhere"}, grpc.StatusCode.PERMISSION_DENIED, "TENANT_MISMATCH"),
        ("Watch", "reader", {"name": "c1"}, grpc.StatusCode.PERMISSION_DENIED, "KEY_PERMISSION_MISSING"),
        ("Talk", "reader", {}, grpc.StatusCode.PERMISSION_DENIED, "KEY_PERMISSION_MISSING"),
        ("Fill", None, {}, grpc.StatusCode.UNAUTHENTICATED, "KEY_MISSING"),
        ("Fill", "unknown", {}, grpc.StatusCode.UNAUTHENTICATED, "KEY_UNKNOWN"),
        ("Get", "reader", {"name": "..", "etag": "x"}, grpc.StatusCode.INVALID_ARGUMENT, "RESOURCE_INVALID"),
        ("Unheard", "key", {}, grpc.StatusCode.PERMISSION_DENIED, "METHOD_UNKNOWN"),
    ],
)
async def test_grpc_refuses(
    campaigns: grpc.aio.Channel,
    shop: Shop,
    method: str,
    given: str | None,
    fields: dict[str, str],
    code: grpc.StatusCode,
    reason: str,
) -> None:
    key = {"unknown": new_secret("hey_"), "reader": shop.reader, "key": shop.key}.get(given or "")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(campaigns, method, key, **fields)
    problem = problem_of(raised.value)
    assert (problem.code, problem.reason) == (code, reason)
    if reason == "KEY_PERMISSION_MISSING":
        assert problem.metadata["action"] == "write"


# ---------------------------------------------------------------- the example


def test_the_example_s_commands_name_what_there_is() -> None:
    readme = (ROOT / "examples" / "service" / "README.md").read_text()
    (line,) = re.findall(r"^\.venv/bin/uvicorn .*$", readme, re.MULTILINE)
    assert shlex.split(line)[1:] == ["--app-dir", "examples/service", "app:app"]


async def test_the_example_end_to_end(root: Client, shop: Shop) -> None:
    """A real server of its own, called over HTTP: allowed, denied, revoked, and with its Gatekey out of reach."""
    token = await root.create_token({f"products/{PRODUCT}/checks": ["create"]})
    port = free_port()
    arguments = [sys.executable, "-m", "uvicorn", "--app-dir", "examples/service", "app:app", "--port", str(port)]
    async with Way(root.address) as way, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        variables = environment(GATEKEY_ADDRESS=way.address, GATEKEY_TOKEN=token)
        service = await asyncio.create_subprocess_exec(
            *arguments, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert service.stdout is not None
        try:
            async with asyncio.timeout(60):
                while b"Uvicorn running" not in await service.stdout.readline():
                    assert not service.stdout.at_eof()
            reader, writer = ({"authorization": f"Bearer {key}"} for key in (shop.reader, shop.key))
            response = await http.get("/campaigns/spring", headers=reader)
            assert (response.status_code, response.json()) == (
                200,
                {"campaign": "spring", "title": "Spring sale", "organisation": shop.tenant},
            )
            response = await http.put("/campaigns/spring", params={"title": "Sale"}, headers=reader)
            assert (response.status_code, missing(response)) == (
                403,
                [{"resource": "campaigns/spring", "action": "write"}],
            )
            response = await http.put("/campaigns/spring", params={"title": "Sale"}, headers=writer)
            assert (response.status_code, response.json()["changed_by"]) == (200, shop.owner)
            assert (await http.get("/campaigns/spring")).status_code == 401
            await root.keys.RevokeApiKey(keys_pb.RevokeApiKeyRequest(name=shop.name), timeout=10)
            response = await http.get("/campaigns/spring", headers=writer)
            assert (response.status_code, response.json()["detail"]["reason"]) == (401, "KEY_REVOKED")
            await way.close()
            assert (await http.get("/campaigns/spring", headers=reader)).status_code == 503
            await way.open()
            while (await http.get("/campaigns/spring", headers=reader)).status_code != 200:
                await asyncio.sleep(0.1)
        finally:
            service.terminate()
            output = (await service.communicate())[0].decode()
    assert token not in output
    assert shop.key not in output
