"""Checks of keys for Starlette, and for whatever else speaks ASGI::

guard = KeyGuard(gatekey.AsyncClient(), product="heyoo")

routes = [
    Route("/links/{link}", read_link, middleware=[
        Middleware(KeyMiddleware, guard=guard, need=Need("links/{link}", "read")),
    ]),
]

async def read_link(request):
    decision = decision_of(request)
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from gatekey import _guards, errors
from gatekey._guards import BEARER, Credential, Refusal
from gatekey.client import AsyncClient
from gatekey.decisions import Decision

__all__ = ["Credential", "KeyGuard", "KeyMiddleware", "Need", "Refusal", "decision_of"]

Need = _guards.Need[HTTPConnection]

_POLICY_VIOLATION = 1008


class KeyGuard:
    """Checks the keys of requests.

    - `product`: the id of the product whose keys are accepted. To be given where the client's token may check several.
    - `credential`: where the product's spec says that keys are presented.
    """

    def __init__(self, client: AsyncClient, *, product: str | None = None, credential: Credential = BEARER) -> None:
        self.client = client
        self.product = product
        self.credential = credential

    async def admit(self, request: HTTPConnection, need: Need) -> Decision:
        """Check the request's key, and put the decision on the request. Raises `Refusal`."""
        key = self.credential.key_in(request.headers.getlist(self.credential.header))
        asked = _guards.question(need, request, request.path_params.__getitem__, key, self.product)
        try:
            decision = await self.client.check(
                asked.key, asked.resource, asked.action, tenant=asked.tenant, product=asked.product
            )
        except errors.CallFailed as error:
            raise _guards.undecided(error) from error
        request.state.gatekey = _guards.admitted(decision)
        return decision

    def headers(self, refusal: Refusal) -> dict[str, str]:
        """The headers that belong to the answer to a refused request."""
        if refusal.status == 401:
            return {"www-authenticate": self.credential.scheme or f'ApiKey header="{self.credential.header}"'}
        return {"retry-after": "1"} if refusal.status in (429, 503) else {}


class KeyMiddleware:
    """Serves only requests whose key allows what they need.

    `need` is what all requests need, or a function that tells it for each; None: the request needs no key. The path's
    parameters can be used in it where the middleware belongs to a route.
    """

    def __init__(self, app: ASGIApp, guard: KeyGuard, need: Need | Callable[[HTTPConnection], Need | None]) -> None:
        self._app = app
        self._guard = guard
        self._need = need

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it. Web sockets are closed with 1008 where requests are refused."""
        if scope["type"] != "lifespan":
            request = HTTPConnection(scope)
            need = self._need(request) if callable(self._need) else self._need
            try:
                if need is not None:
                    await self._guard.admit(request, need)
            except Refusal as refusal:
                await self._refusal(scope, refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, refusal: Refusal) -> ASGIApp:
        if scope["type"] == "websocket":
            return WebSocketClose(_POLICY_VIOLATION, refusal.reason)
        return JSONResponse({"detail": refusal.body}, refusal.status, self._guard.headers(refusal))


def decision_of(request: HTTPConnection) -> Decision:
    """The decision about a request that was admitted. Raises `LookupError` where there was none."""
    decision = getattr(request.state, "gatekey", None)
    if not isinstance(decision, Decision):
        raise LookupError("the request's key was not checked")
    return decision
