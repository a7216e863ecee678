"""Which resource the ids of a request name: made by hand with `Path`, or taken from a request by a guard."""

import asyncio
import copy
import json
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import gatekey
import httpx
import pytest
import uvicorn
from fastapi import APIRouter, FastAPI, WebSocket
from gatekey.fastapi import KeyGuard, requires
from gatekey.starlette import KeyMiddleware, Requirement
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from tests.client_python.support import PRODUCT, Shop
from tests.support.paths import PATHS
from tests.support.server import Client

# ---------------------------------------------------------------- Path


@pytest.mark.parametrize(("segments", "path"), PATHS.items(), ids=repr)
def test_a_path_of_ids(segments: tuple[str, ...], path: str | None) -> None:
    if path is not None:
        assert gatekey.Path(*segments) == path
        return
    with pytest.raises(gatekey.InvalidPath) as raised:
        gatekey.Path(*segments)
    assert raised.value.reason == "RESOURCE_INVALID"


def test_different_ids_are_different_segments() -> None:
    ids = [segments[1] for segments, path in PATHS.items() if path and len(segments) == 2]
    assert len({gatekey.Path("x", each) for each in ids}) == len(set(ids))


@pytest.mark.parametrize("lost", [None, 42, b"s1", ["s1"]])
def test_only_text_is_an_id(lost: Any) -> None:
    with pytest.raises(TypeError):
        gatekey.Path("shipments", lost)


def test_text_that_is_not_unicode_is_no_id() -> None:
    with pytest.raises(ValueError, match="Unicode"):
        gatekey.Path("shipments", "\ud800")


def test_a_path_can_be_copied() -> None:
    path = gatekey.Path("shipments", "a b")
    assert copy.deepcopy(path) == pickle.loads(pickle.dumps(path)) == path  # noqa: S301


async def test_a_check_of_a_path(client: Any, root: Client, shop: Shop) -> None:
    """Every path that can be made is one that the server takes, and grants."""
    paths = [gatekey.Path("campaigns", each[1]) for each, path in PATHS.items() if path and len(each) == 2]
    owner = f"products/{PRODUCT}/tenants/{shop.tenant}/members/owner"
    key = await root.create_key(
        f"products/{PRODUCT}/tenants/{shop.tenant}",
        owner,
        mode="RESTRICTED",
        grants={path: ["read"] for path in dict.fromkeys(paths)},
    )
    questions = [gatekey.Question(key.secret, path, "read") for path in paths]
    results = client.check_many(questions)
    assert all(await results if asyncio.iscoroutine(results) else results)


# ---------------------------------------------------------------- the guards


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any


class Service:
    """A service on a socket, asked with bytes that nothing has put right on their way."""

    def __init__(self, port: int, key: str, reader: str) -> None:
        self._port = port
        self._keys = key, reader

    async def get(self, path: bytes, key: str) -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"host: service\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n"
        writer.write(b"GET " + path + b" HTTP/1.1\r\n" + head.encode())
        answer = await reader.read()
        writer.close()
        head_, _, body = answer.partition(b"\r\n\r\n")
        return Answer(int(head_.split()[1]), json.loads(body) if body[:1] == b"{" else None)

    async def asked(self, path: bytes) -> tuple[str, str] | int:
        """The resource that a path is taken for and the id that its handler gets, or the status of the refusal."""
        served, refused = [await self.get(path, key) for key in self._keys]
        if served.status != 200:
            assert refused.status == served.status
            return served.status
        assert refused.status == 403, refused
        (missing,) = refused.body["detail"]["missing_permissions"]
        return missing["resource"], served.body["campaign"]


@asynccontextmanager
async def served(app: Any, shop: Shop, root_path: str = "") -> AsyncIterator[Service]:
    """The application on a real socket."""
    config = uvicorn.Config(app, port=0, log_level="error", root_path=root_path, lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield Service(server.servers[0].sockets[0].getsockname()[1], shop.key, shop.reader)
    finally:
        server.should_exit = True
        await task


@pytest.fixture
async def guard(root: Client, root_token: str) -> AsyncIterator[KeyGuard]:
    """The guard of Heyoo's keys."""
    async with gatekey.AsyncClient(root.address, token=root_token, timeout=10) as client:
        yield KeyGuard(client, product=PRODUCT)


def fast_app(guard: KeyGuard) -> FastAPI:
    """Campaigns, whose handlers tell which id they got."""
    api, sub, router = FastAPI(), FastAPI(), APIRouter(prefix="/routers")
    may_write = [requires(guard, "campaigns/{campaign}", "write")]

    @sub.get("/{campaign}", dependencies=may_write)
    @router.get("/{campaign}", dependencies=may_write)
    @api.get("/plain/{campaign}", dependencies=may_write)
    @api.get("/paths/{campaign:path}", dependencies=may_write)
    @api.get("/{campaign}/labels/all", dependencies=may_write)
    @api.get("/files/{campaign}.json", dependencies=may_write)
    async def read(campaign: str) -> dict[str, str]:
        return {"campaign": campaign}

    @api.get("/both/{left:path}/and/{right:path}", dependencies=[requires(guard, "campaigns/{left}", "write")])
    async def both(left: str, right: str) -> dict[str, str]:
        return {"campaign": left, "right": right}

    api.mount("/mounted", sub)
    api.include_router(router, prefix="/v1/{version}")
    return api


async def show(request: Request) -> JSONResponse:
    return JSONResponse({"campaign": request.path_params["campaign"]})


def starlette_app(guard: KeyGuard) -> Starlette:
    middleware = [Middleware(KeyMiddleware, guard=guard, requirement=Requirement("campaigns/{campaign}", "write"))]
    route = Route("/{campaign}", show, middleware=middleware)
    return Starlette(routes=[Mount("/deep/{x}", routes=[Mount("/deeper", routes=[route])])])


NAMED = {
    b"spring%20sale": ("spring%20sale", "spring sale"),
    b"caf%C3%A9": ("caf%C3%A9", "café"),
    b"caf%c3%a9": ("caf%C3%A9", "café"),
    b"ann@example.com": ("ann@example.com", "ann@example.com"),
    b"ann%40example.com": ("ann@example.com", "ann@example.com"),
    b"a:b": ("a:b", "a:b"),
    b"a%3Ab": ("a:b", "a:b"),
    b"a%3ab": ("a:b", "a:b"),
    b"%61bc": ("abc", "abc"),
    b"%7Etilde": ("~tilde", "~tilde"),
    b"spring%2520sale": ("spring%2520sale", "spring%20sale"),
    b"a%252Fb": ("a%252Fb", "a%2Fb"),
    b"%2561": ("%2561", "%61"),
    b"spring+sale": ("spring+sale", "spring+sale"),
    b"spring%2Bsale": ("spring+sale", "spring+sale"),
    b"50%25": ("50%25", "50%"),
    b"a%2Ab": ("a%2Ab", "a*b"),
    b"a%5Cb": ("a%5Cb", "a\\b"),
    b"a;b=c": ("a;b=c", "a;b=c"),
    b"a%3Fb%23c": ("a%3Fb%23c", "a?b#c"),
    b"%F0%9F%98%80": ("%F0%9F%98%80", "😀"),
    b"...": ("...", "..."),
}
REFUSED = [
    b"%2E%2E", b"%2e", b"*", b"%2A", b"x%00", b"a%0Ab", b"a%7F", b"%0D%0A",
    b"%FF", b"%C3", b"%ED%A0%80", b"%C0%AF", b"%zz", b"a%2", b"%", b"a" * 257,
]  # fmt: skip
PREFIXES = {
    "fastapi": (b"/plain/", b"/paths/", b"/v1/2/routers/", b"/mounted/"),
    "starlette": (b"/deep/y/deeper/",),
}


@pytest.mark.parametrize("root_path", ["", "/api"])
@pytest.mark.parametrize("framework", PREFIXES)
async def test_an_id_names_the_resource_that_its_handler_gets(
    guard: KeyGuard, shop: Shop, framework: str, root_path: str
) -> None:
    app: Any = fast_app(guard) if framework == "fastapi" else starlette_app(guard)
    async with served(app, shop, root_path) as service:
        for prefix in PREFIXES[framework]:
            for sent, (segment, got) in NAMED.items():
                assert await service.asked(prefix + sent) == (f"campaigns/{segment}", got), (prefix, sent)
                assert gatekey.Path("campaigns", got) == f"campaigns/{segment}"
            for sent in REFUSED:
                # Some are found no route for.
                assert await service.asked(prefix + sent) in (400, 404), (prefix, sent)
            # Frameworks route by the decoded path, and in most of these routes an id has no slash.
            slash = ("campaigns/a%2Fb", "a/b") if prefix == b"/paths/" else 404
            assert await service.asked(prefix + b"a%2Fb") == slash, prefix


async def test_a_slash_that_was_sent_escaped_parts_nothing(guard: KeyGuard, shop: Shop) -> None:
    async with served(fast_app(guard), shop) as service:
        assert await service.asked(b"/c1/labels/all") == ("campaigns/c1", "c1")
        assert await service.asked(b"/files/a%20b.json") == ("campaigns/a%20b", "a b")
        for path in (b"/c1%2Flabels/all", b"/c1%2flabels%2Fall", b"/c1/labels%2Fall", b"/plain%2Fc1"):
            assert await service.asked(path) == 400, path
        assert await service.asked(b"/paths/a%2fb%2Fc") == ("campaigns/a%2Fb%2Fc", "a/b/c")
        assert await service.asked(b"/paths/%2F") == ("campaigns/%2F", "/")
        for path in (b"/paths/a/b", b"/paths/a%2Fb/c", b"/paths/a/", b"/paths/", b"/paths/..%2F..%2Fx/y"):
            assert await service.asked(path) == 400, path
        # A segment elsewhere in the path vouches for nothing.
        assert await service.asked(b"/both/q%2Fz/and/r") == ("campaigns/q%2Fz", "q/z")
        for path in (b"/both/q/z/and/q%2Fz", b"/both/q%2Fz/and/q/z", b"/both/q%2Fand%2Fz/and", b"/both/q%2Fand/z"):
            assert await service.asked(path) == 400, path


async def test_every_byte_is_taken_for_what_its_handler_gets_or_refused(guard: KeyGuard, shop: Shop) -> None:
    async with served(fast_app(guard), shop) as service:
        for byte in range(256):
            sent = b"/plain/x%%%02X" % byte
            asked = await service.asked(sent)
            if byte in range(32) or byte in range(127, 256):
                assert asked == 400, sent
            elif byte == ord("/"):
                assert asked == 307  # to where the router finds a segment and a slash
            else:
                assert asked == (gatekey.Path("campaigns", f"x{chr(byte)}"), f"x{chr(byte)}"), sent


async def test_the_path_of_a_web_socket(guard: KeyGuard, shop: Shop) -> None:
    app = FastAPI()

    @app.websocket("/fast/{campaign}", dependencies=[requires(guard, "campaigns/{campaign}", "write")])
    async def talk(socket: WebSocket, campaign: str) -> None:
        await socket.accept()
        await socket.send_text(campaign)
        await socket.close()

    async def sent(raw: bytes, path: str, key: str) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            messages.append(message)

        headers = [(b"authorization", f"Bearer {key}".encode())]
        await app(
            {"type": "websocket", "path": path, "raw_path": raw, "headers": headers, "query_string": b""}, receive, send
        )
        return messages

    assert [each.get("text") for each in await sent(b"/fast/a%20b", "/fast/a b", shop.key)][1] == "a b"
    closed = {"type": "websocket.close", "code": 1008}
    (refused,) = await sent(b"/fast/a%20b", "/fast/a b", shop.reader)
    assert refused == {**closed, "reason": "KEY_PERMISSION_MISSING"}
    for raw, decoded in ((b"/fast/%2E%2E", "/fast/.."), (b"/fast/x%2Fy", "/fast/x"), (b"/fast/%FF", "/fast/\ufffd")):
        (refused,) = await sent(raw, decoded, shop.key)
        assert refused == {**closed, "reason": "RESOURCE_INVALID"}


async def test_a_path_that_something_has_rewritten(guard: KeyGuard, shop: Shop) -> None:
    """A prefix may be taken off; a path that is another one names nothing."""
    app = starlette_app(guard)

    async def status(path: str, raw: bytes | None) -> int:
        async def rewritten(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "path": path, "raw_path": raw}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(rewritten), base_url="http://service") as http:
            return (await http.get("/", headers={"authorization": f"Bearer {shop.key}"})).status_code

    assert await status("/deep/y/deeper/a b", b"/prefix/deep/y/deeper/a%20b") == 200
    assert await status("/deep/y/deeper/a b", b"/deep/y/deeper/a%2520b") == 400
    assert await status("/deep/y/deeper/a b", b"/deep/y/deeper/other") == 400
    # A server that does not tell what was sent.
    assert await status("/deep/y/deeper/a b", None) == 200
