"""What a service learns when it starts: of its templates, its token, its product; and what is told when it is wrong."""

import asyncio
import contextlib
import gc
import logging
import os
import subprocess
import sys
import textwrap
import weakref
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gatekey
import grpc
import httpx
import pytest
from fastapi import APIRouter, FastAPI
from gatekey import _fork_hooks
from gatekey._faults import EVERY_S, FaultLog
from gatekey._products import REFRESH_S, RETRY_S
from gatekey.fastapi import Credential, KeyGuard, requires
from gatekey.grpc import AsyncKeyInterceptor, KeyInterceptor
from gatekey.grpc import Requirement as CallRequirement
from gatekey.starlette import KeyMiddleware, Requirement
from gatekey.v1 import tenant_service_pb2 as tenants_pb
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from tests.client_python.network import Way, free_port
from tests.client_python.support import PRODUCT, Shop, made, opened
from tests.support.server import Client, environment, read_example

# ---------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("resource", "action", "tenant"),
    [
        ("", "read", None),
        ("campaigns/", "read", None),
        ("campaigns//x", "read", None),
        ("campaigns/{campaign", "read", None),
        ("campaigns/{campaign:path}", "read", None),
        ("campaigns/{}", "read", None),
        ("campaigns/*", "read", None),
        ("campaigns/..", "read", None),
        ("campaigns/spring sale", "read", None),
        ("{kind}/{id}", "read", None),
        ("campaigns", "", None),
        ("campaigns", "Read", None),
        ("campaigns", "read\n", None),
        ("campaigns", "read", "{tenant}/x"),
        ("campaigns", "read", "{tenant"),
    ],
)
def test_texts_that_no_request_can_be_asked_with(resource: str, action: str, tenant: str | None) -> None:
    for requirement in (Requirement, CallRequirement):
        with pytest.raises(ValueError):  # noqa: PT011 - each has a text of its own
            requirement(resource, action, tenant)


# ---------------------------------------------------------------- routes


def page(_: Any) -> PlainTextResponse:
    return PlainTextResponse("")


@pytest.fixture
async def gate(root: Client, root_token: str) -> AsyncIterator[gatekey.AsyncClient]:
    """The client of a protected server."""
    async with gatekey.AsyncClient(root.address, token=root_token, timeout=10) as client:
        yield client


async def test_a_parameter_that_a_route_does_not_have_is_told_at_the_start(gate: gatekey.AsyncClient) -> None:
    guard = KeyGuard(gate, product=PRODUCT)
    api, sub, router = FastAPI(lifespan=guard.lifespan), FastAPI(), APIRouter()

    @api.get("/good/{campaign}", dependencies=[requires(guard, "campaigns/{campaign}", "read")])
    @api.get("/bad/{id}", dependencies=[requires(guard, "campaigns/{campaign}", "read")])
    @router.get("/{campaign}", dependencies=[requires(guard, "campaigns/{campaign}", "read", tenant="{tenant}")])
    @sub.get("/sub/{campaign}", dependencies=[requires(guard, "campaigns/{campaign}", "read", tenant="{outer}")])
    async def read() -> None:
        pass

    api.include_router(router, prefix="/routed/{tenant}")
    api.include_router(router, prefix="/unrouted")
    api.mount("/mounted/{outer}", sub)
    with pytest.raises(gatekey.Misconfigured) as raised:
        guard.check_routes(api)
    with pytest.raises(gatekey.Misconfigured) as again:
        await guard.verify(api)
    assert again.value.problems == raised.value.problems
    assert sorted(raised.value.problems) == [
        "`read` on `campaigns/{campaign}`: the route /bad/{id} has no parameter `campaign`",
        "`read` on `campaigns/{campaign}`: the route /unrouted/{campaign} has no parameter `tenant`",
    ]


async def test_the_lifespan_ends_a_service_that_cannot_work(root: Client, root_token: str) -> None:
    client = gatekey.AsyncClient(root.address, token=root_token, timeout=10)
    guard = KeyGuard(client, product=PRODUCT)
    middleware = [Middleware(KeyMiddleware, guard=guard, requirement=Requirement("campaigns/{campaign}", "read"))]
    routes = [
        Mount("/a/{campaign}", routes=[Route("/b", page, middleware=middleware)]),
        Route("/c/{path:path}", page, middleware=middleware),
    ]
    app = Starlette(routes=routes, middleware=middleware, lifespan=guard.lifespan)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    with contextlib.suppress(gatekey.Misconfigured):
        await app({"type": "lifespan", "state": {}}, receive, send)
    (failed,) = sent
    assert failed["type"] == "lifespan.startup.failed"
    assert "the route /c/{path:path} has no parameter `campaign`" in failed["message"]
    assert "not known before a request is routed" in failed["message"]
    assert "/b" not in failed["message"]
    with pytest.raises(RuntimeError, match="closed"):
        await client.check("hey_x", "campaigns", "read")


async def test_a_parameter_that_is_missing_all_the_same(
    gate: gatekey.AsyncClient, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    guard = KeyGuard(gate, product=PRODUCT)
    middleware = [Middleware(KeyMiddleware, guard=guard, requirement=Requirement("campaigns/{campaign}", "read"))]
    app = Starlette(routes=[Route("/{id}", page, middleware=middleware)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
        for _ in range(2):
            response = await http.get("/c1", headers={"authorization": f"Bearer {shop.key}"})
            assert (response.status_code, response.json()["detail"]["reason"]) == (500, "SERVICE_MISCONFIGURED")
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert told == [
        "`read` on `campaigns/{campaign}`: the route /{id} has no parameter `campaign`",
        "`read` on `campaigns/{campaign}` takes `{campaign}` from the request, which has no such parameter",
    ]


async def test_what_is_wrong_with_other_routes_is_told_with_the_first_request(
    gate: gatekey.AsyncClient, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """Also of a service that does not look at itself when it starts."""
    guard, app, sub = KeyGuard(gate, product=PRODUCT), FastAPI(), FastAPI()

    @sub.get("/{campaign}", dependencies=[requires(guard, "campaigns/{campaign}", "read", tenant="{outer}")])
    @app.get("/good/{campaign}", dependencies=[requires(guard, "campaigns/{campaign}", "read")])
    @app.get("/bad/{id}", dependencies=[requires(guard, "campaigns/{campaign}", "read")])
    async def read() -> None:
        pass

    app.mount("/sub/{outer}", sub)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
        headers = {"authorization": f"Bearer {shop.key}"}
        for path in (f"/sub/{shop.tenant}/c1", "/good/c1", "/good/c1"):
            assert (await http.get(path, headers=headers)).status_code == 200
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert told == ["`read` on `campaigns/{campaign}`: the route /bad/{id} has no parameter `campaign`"]


@pytest.mark.parametrize("sent", ["a b", "..", "a{", "", "*"])
async def test_a_need_that_is_made_of_what_a_client_sends(gate: gatekey.AsyncClient, shop: Shop, sent: str) -> None:
    def requirement(request: Any) -> Requirement:
        return Requirement(f"campaigns/{request.query_params['c']}", "read")

    guard = KeyGuard(gate, product=PRODUCT)
    app = Starlette(
        routes=[Route("/", page)], middleware=[Middleware(KeyMiddleware, guard=guard, requirement=requirement)]
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
        headers = {"authorization": f"Bearer {shop.key}"}
        assert (await http.get("/", params={"c": "c1"}, headers=headers)).status_code == 200
        response = await http.get("/", params={"c": sent}, headers=headers)
    assert (response.status_code, response.json()["detail"]["reason"]) == (400, "RESOURCE_INVALID")


# ---------------------------------------------------------------- the spec


async def test_what_the_spec_does_not_declare_is_told_at_the_start(gate: gatekey.AsyncClient) -> None:
    guard = KeyGuard(gate, product=PRODUCT)
    for resource, action in (
        ("campaigns", "read"),
        ("campaigns/{id}", "reed"),
        ("campaign/{id}", "read"),
        ("campaigns/{id}/mails", "read"),
    ):
        requires(guard, resource, action)
    with pytest.raises(gatekey.Misconfigured) as raised:
        await guard.verify()
    first, second, third = raised.value.problems
    assert first.startswith("`reed` on `campaigns/{id}`: the product `heyoo` declares only `read`")
    assert second.endswith("declares no collection `campaign`")
    assert third.endswith("declares no collection `campaigns/*/mails`")


async def test_what_the_spec_does_not_declare_is_the_service_s_fault(
    root: Client, root_token: str, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    async with gatekey.AsyncClient(root.address, token=root_token, timeout=10) as client:
        guard, app = KeyGuard(client, product=PRODUCT), FastAPI()

        @app.get("/reed/{id}", dependencies=[requires(guard, "campaigns/{id}", "reed")])
        @app.get("/campaign/{id}", dependencies=[requires(guard, "campaign/{id}", "read")])
        async def read() -> None:
            pass

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
            for path, reason in (("/reed/{}", "ACTION_UNKNOWN"), ("/campaign/{}", "RESOURCE_UNKNOWN")):
                for number in range(3):
                    response = await http.get(path.format(number), headers={"authorization": f"Bearer {shop.key}"})
                    assert (response.status_code, response.json()["detail"]["reason"]) == (500, reason)
                # To whoever has no key, nothing is told.
                assert (await http.get(path.format(0))).status_code == 401
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [sum(reason in each for each in told) for reason in ("ACTION_UNKNOWN", "RESOURCE_UNKNOWN")] == [1, 1]
    # Also before the first key came.
    assert sum("declares no collection `campaign`" in each for each in told) == 1
    assert shop.key not in caplog.text


async def test_every_client_tells_of_such_faults(client: Any, shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    assert (await made(client.check, shop.key, "campaign/1", "read")).reason is gatekey.Reason.RESOURCE_UNKNOWN
    questions = [gatekey.Question(shop.key, f"campaigns/{number}", "reed") for number in range(3)]
    assert not any(await made(client.check_many, questions))
    assert not await made(client.check, shop.reader, "campaigns", "write")
    told = [record.getMessage() for record in caplog.records]
    assert [each.partition(":")[0] for each in told] == ["RESOURCE_UNKNOWN", "ACTION_UNKNOWN"]
    assert "`reed` on 'campaigns/0'" in told[1]


def test_a_fault_is_told_again_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    log = FaultLog(lambda: now[0])
    for _ in range(5):
        log.report("a fault")
    now[0] = EVERY_S
    log.report("a fault")
    assert [record.getMessage() for record in caplog.records] == [
        "a fault",
        "a fault (and 4 times since this was last logged)",
    ]
    caplog.clear()
    for number in range(10_000):
        log.report(f"fault {number}")
    assert len(caplog.records) <= 256


# ---------------------------------------------------------------- the token and the product


@pytest.mark.parametrize("grant", ["products/bitsy/checks", "products/parcle/checks"])
async def test_a_token_that_may_not_check_the_product(
    root: Client, shop: Shop, grant: str, caplog: pytest.LogCaptureFixture
) -> None:
    token = await root.create_token({grant: ["create"]})
    async with gatekey.AsyncClient(root.address, token=token, timeout=10) as client:
        with pytest.raises(gatekey.ApiError):
            await client.check_config(PRODUCT)
        for credential in (None, Credential()):
            guard, app = KeyGuard(client, product=PRODUCT, credential=credential), FastAPI()
            with pytest.raises(gatekey.Misconfigured, match="cannot check keys of the product `heyoo`"):
                await guard.verify(app)

            @app.get("/", dependencies=[requires(guard, "campaigns", "read")])
            async def read() -> None:
                pass

            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
                response = await http.get("/", headers={"authorization": f"Bearer {shop.key}"})
            # The customer's key is not to blame.
            assert (response.status_code, response.json()["detail"]["reason"]) == (503, "UNDECIDED")
    assert "the service token cannot check keys of the product `heyoo`" in caplog.text
    assert token not in caplog.text


@pytest.mark.parametrize("kind", ["threads", "event loop", "event loop, unbatched"])
async def test_a_client_whose_token_is_for_another_product_tells_so(
    kind: str, root: Client, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """All keys are unknown to it; that is no reason to let it stay so in silence."""
    token = await root.create_token({"products/bitsy/checks": ["create"]})
    async with opened(kind, root.address, token=token, timeout=10) as client:
        for _ in range(3):
            decision = await made(client.check, shop.key, "campaigns", "read", product=PRODUCT)
            assert decision.reason is gatekey.Reason.KEY_UNKNOWN
        await made(client.check, shop.key, "campaigns", "read", product="bitsy")
        async with asyncio.timeout(10):
            while not caplog.records:
                await asyncio.sleep(0.01)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("all keys of the product `heyoo` are unknown: the service token cannot check them")
    assert shop.key not in told


async def test_a_guard_learns_where_keys_are_presented(root: Client, fresh_id: str) -> None:
    """Also where the token is for one product, and nobody says which; and anew when the spec changes."""
    product = fresh_id
    spec = read_example(PRODUCT)
    spec.product = product
    spec.secret_keys.prefix = f"{product}_" if spec.secret_keys.prefix else ""
    spec.ClearField("publishable_keys")
    spec.credential.header, spec.credential.scheme = "x-shop-key", ""
    await root.apply(spec)
    tenant = await root.create_tenant(product, "acme")
    key = (await root.create_key(tenant, await root.add_member(tenant, "u", "owner"), mode="ALL")).secret
    token = await root.create_token({f"products/{product}/checks": ["create"]})
    async with gatekey.AsyncClient(root.address, token=token, timeout=10) as client:
        guard, app = KeyGuard(client), FastAPI()

        @app.get("/", dependencies=[requires(guard, "campaigns", "read")])
        async def read() -> None:
            pass

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
            assert (await http.get("/", headers={"x-shop-key": key})).status_code == 200
            response = await http.get("/", headers={"authorization": f"Bearer {key}"})
            assert (response.status_code, response.headers["www-authenticate"]) == (401, 'ApiKey header="x-shop-key"')
            schemes = (await http.get("/openapi.json")).json()["components"]["securitySchemes"]
            assert [(scheme["in"], scheme["name"]) for scheme in schemes.values()] == [("header", "x-shop-key")]

            spec.credential.header, spec.credential.scheme = "authorization", "Key"
            await root.apply(spec)
            assert (await http.get("/", headers={"x-shop-key": key})).status_code == 200
            guard._product._clock = lambda: guard._product._due_at + REFRESH_S
            async with asyncio.timeout(10):
                while (await http.get("/", headers={"authorization": f"Key {key}"})).status_code != 200:
                    await asyncio.sleep(0.01)
            assert (await http.get("/", headers={"x-shop-key": key})).status_code == 401


async def test_the_product_is_not_asked_about_for_each_request(root: Client, root_token: str, shop: Shop) -> None:
    asked = 0

    class Counting(gatekey.AsyncClient):
        async def check_config(self, *arguments: Any, **keywords: Any) -> Any:
            nonlocal asked
            asked += 1
            return await super().check_config(*arguments, **keywords)

    async with Counting(root.address, token=root_token, timeout=10) as client:
        guard, app = KeyGuard(client, product=PRODUCT), FastAPI()

        @app.get("/", dependencies=[requires(guard, "campaigns", "read")])
        async def read() -> None:
            pass

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
            headers = {"authorization": f"Bearer {shop.key}"}
            responses = await asyncio.gather(*(http.get("/", headers=headers) for _ in range(50)))
            assert {response.status_code for response in responses} == {200}
    assert asked == 1


async def test_a_service_that_starts_without_a_server(
    root: Client, root_token: str, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    way = Way(root.address, port=free_port())
    async with gatekey.AsyncClient(way.address, token=root_token, timeout=0.3) as client:
        guard, app = KeyGuard(client, product=PRODUCT), FastAPI()

        @app.get("/", dependencies=[requires(guard, "campaigns", "read")])
        async def read() -> None:
            pass

        await guard.verify(app)
        assert "before Gatekey responds" in caplog.text
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
            headers = {"authorization": f"Bearer {shop.key}"}
            response = await http.get("/", headers=headers)
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            async with way, asyncio.timeout(20 * RETRY_S):
                while (await http.get("/", headers=headers)).status_code != 200:
                    await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_calls_do_not_queue_for_a_server_that_is_stuck(root: Client, root_token: str, shop: Shop) -> None:
    """All that wait for the same news are refused when there is none, and not one after the other."""
    key = ("authorization", f"Bearer {shop.key}")
    requirement = CallRequirement("campaigns", "read")
    async with Way(root.address) as way:
        way.jam()
        for kind in ("threads", "event loop"):
            begun = asyncio.get_running_loop().time()
            async with grpc_serving(kind, way.address, root_token, requirement, timeout=1.5, product=PRODUCT) as (
                address,
                _,
            ):
                statuses = await asyncio.gather(*(grpc_status(address, key) for _ in range(8)))
            assert set(statuses) == {grpc.StatusCode.UNAVAILABLE}
            assert asyncio.get_running_loop().time() - begun < 5


# ---------------------------------------------------------------- gRPC


@pytest.mark.parametrize(
    ("method", "requirement", "problem"),
    [
        ("GetTenant", CallRequirement("campaigns/{nam}", "read"), "`nam`, which is no field of GetTenant's request"),
        ("GetTenant", CallRequirement("campaigns", "read", "{nam}"), "`nam`"),
        ("ListTenants", CallRequirement("campaigns/{show_deleted}", "read"), "`show_deleted`"),
        ("UpdateTenant", CallRequirement("campaigns/{tenant}", "read"), "`tenant`"),
        ("*", CallRequirement("campaigns/{name}", "read"), "`name`, which is no field of CreateTenant's request"),
        ("GetTennant", CallRequirement("campaigns", "read"), "no such method"),
    ],
)
def test_fields_that_a_request_does_not_have_are_told_at_once(
    method: str, requirement: CallRequirement, problem: str
) -> None:
    requirements = {f"/gatekey.v1.TenantService/{method}": requirement}
    for kind in (KeyInterceptor, AsyncKeyInterceptor):
        with pytest.raises(ValueError, match=problem):
            kind(None, requirements)  # type: ignore[arg-type]


def grpc_service(server: Any, answer: Any) -> None:
    codec = tenants_pb.Tenant.FromString, tenants_pb.Tenant.SerializeToString
    handlers = {"Get": grpc.unary_unary_rpc_method_handler(answer, *codec)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.v1.Shop", handlers),))


async def grpc_status(address: str, *metadata: tuple[str, str], **fields: Any) -> Any:
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(
            "/shop.v1.Shop/Get", tenants_pb.Tenant.SerializeToString, tenants_pb.Tenant.FromString
        )
        try:
            await call(tenants_pb.Tenant(**fields), metadata=metadata, timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


@contextlib.asynccontextmanager
async def grpc_serving(
    kind: str, address: str, token: str, requirement: CallRequirement, timeout: float = 5, **keywords: Any
) -> AsyncIterator[Any]:
    """The address of a protected server, and its interceptor."""
    async with opened(kind, address, token=token, timeout=timeout) as client:
        if kind == "threads":
            interceptor: Any = KeyInterceptor(client, {"/shop.v1.Shop/Get": requirement}, **keywords)
            server: Any = grpc.server(ThreadPoolExecutor(8), interceptors=[interceptor])
            grpc_service(server, lambda request, _: request)
        else:

            async def answer(request: Any, _: Any) -> Any:
                return request

            interceptor = AsyncKeyInterceptor(client, {"/shop.v1.Shop/Get": requirement}, **keywords)
            server = grpc.aio.server(interceptors=[interceptor])
            grpc_service(server, answer)
        port = server.add_insecure_port("127.0.0.1:0")
        await made(server.start)
        yield f"127.0.0.1:{port}", interceptor
        if kind == "threads":
            await asyncio.to_thread(server.stop(None).wait)
        else:
            await server.stop(None)


@pytest.mark.parametrize("kind", ["threads", "event loop"])
async def test_grpc_guards_look_and_learn_as_well(kind: str, root: Client, root_token: str, shop: Shop) -> None:
    key, status = ("authorization", f"Bearer {shop.key}"), grpc.StatusCode
    good = CallRequirement("campaigns/{name}", "read")
    async with grpc_serving(kind, root.address, root_token, good, product=PRODUCT) as (address, interceptor):
        await made(interceptor.verify)
        for name in ("c1", "a b", "a/b", "café", "%"):
            assert await grpc_status(address, key, name=name) is status.OK
        for name in ("", ".", "*", "a\nb"):
            assert await grpc_status(address, key, name=name) is status.INVALID_ARGUMENT
    async with grpc_serving(kind, root.address, root_token, CallRequirement("campaigns", "reed"), product=PRODUCT) as (
        address,
        interceptor,
    ):
        with pytest.raises(gatekey.Misconfigured, match="reed"):
            await made(interceptor.verify)
        assert await grpc_status(address, key) is status.INTERNAL
    missing = CallRequirement("campaigns/{nothing}", "read")
    async with grpc_serving(kind, root.address, root_token, missing, product=PRODUCT) as (address, _):
        assert await grpc_status(address, key) is status.INTERNAL
    other = await root.create_token({"products/bitsy/checks": ["create"]})
    async with grpc_serving(kind, root.address, other, good, product=PRODUCT) as (address, interceptor):
        with pytest.raises(gatekey.Misconfigured, match="cannot check"):
            await made(interceptor.verify)
        assert await grpc_status(address, key, name="c1") is status.UNAVAILABLE
    async with grpc_serving(kind, f"127.0.0.1:{free_port()}", root_token, good, product=PRODUCT) as (
        address,
        interceptor,
    ):
        await made(interceptor.verify)
        assert await grpc_status(address, key, name="c1") is status.UNAVAILABLE


@pytest.mark.parametrize("kind", ["threads", "event loop"])
async def test_the_resource_of_a_field(kind: str, root: Client, root_token: str, shop: Shop) -> None:
    """A key for `a%2Fb` is one for the id `a/b`, and for no other."""
    owner = f"products/{PRODUCT}/tenants/{shop.tenant}/members/owner"
    granted = await root.create_key(
        f"products/{PRODUCT}/tenants/{shop.tenant}", owner, mode="RESTRICTED", grants={"campaigns/a%2Fb": ["read"]}
    )
    key = ("authorization", f"Bearer {granted.secret}")
    requirement = CallRequirement("campaigns/{name}", "read")
    async with grpc_serving(kind, root.address, root_token, requirement, product=PRODUCT) as (address, _):
        assert await grpc_status(address, key, name="a/b") is grpc.StatusCode.OK
        for name in ("a%2Fb", "a", "b", "a%2fb", "A/b"):
            assert await grpc_status(address, key, name=name) is grpc.StatusCode.PERMISSION_DENIED


# ---------------------------------------------------------------- clients that are made and closed


def test_closed_clients_are_garbage(root: Client, root_token: str, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[Any] = []
    gatekey.Client(root.address, token=root_token, cache=True).close()
    monkeypatch.setattr(os, "register_at_fork", lambda **functions: registered.append(functions))
    gc.collect()
    before = len(_fork_hooks._METHODS)

    def used_and_closed(number: int) -> list[weakref.ref[Any]]:
        client = gatekey.Client(root.address, token=root_token, timeout=20, cache=number < 10)
        assert client.check(shop.key, "campaigns", "read")
        client.close()
        return [weakref.ref(client), weakref.ref(client._transport), weakref.ref(client._transport._tokens)]

    clients = [each for number in range(100) for each in used_and_closed(number)]
    gc.collect()
    assert registered == []
    assert [each for each in clients if each() is not None] == []
    assert len(_fork_hooks._METHODS) == before


def test_clients_of_a_process_that_forks_after_many_were_closed(root: Client, root_token: str, shop: Shop) -> None:
    program = textwrap.dedent(
        f"""
        import gc, os, gatekey
        from gatekey import _fork_hooks

        for _ in range(100):
            gatekey.Client().close()
        used = gatekey.Client(timeout=20)
        assert used.check({shop.key!r}, "campaigns", "read")
        gc.collect()
        child = os.fork()
        assert used.check({shop.key!r}, "campaigns", "read")
        assert len(_fork_hooks._METHODS) == 2, len(_fork_hooks._METHODS)
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """
    )
    variables = environment(GATEKEY_ADDRESS=root.address, GATEKEY_TOKEN=root_token)
    result = subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
