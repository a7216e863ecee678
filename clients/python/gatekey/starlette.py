"""Checks of keys for Starlette and other ASGI frameworks::

guard = KeyGuard(gatekey.AsyncClient(), product="heyoo")

routes = [
    Route("/links/{link}", read_link, middleware=[
        Middleware(KeyMiddleware, guard=guard, requirement=Requirement("links/{link}", "read")),
    ]),
]
app = Starlette(routes=routes, lifespan=guard.lifespan)

async def read_link(request):
    decision = decision_of(request)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from gatekey import _protection, errors
from gatekey._products import AsyncInquirer, GuardedProduct
from gatekey._protection import AccessRefused, Credential
from gatekey._raw_paths import id_in
from gatekey.client import AsyncClient
from gatekey.decisions import Decision

__all__ = ["AccessRefused", "Credential", "KeyGuard", "KeyMiddleware", "Requirement", "decision_of"]

Requirement = _protection.Requirement[HTTPConnection]

_POLICY_VIOLATION = 1008


class KeyGuard:
    """Checks the keys of requests.

    - `product`: the id of the product whose keys are accepted. Required if the client's token may check several.
    - `credential`: where keys are presented. By default the server returns it from the product's spec.
    """

    def __init__(
        self, client: AsyncClient, *, product: str | None = None, credential: Credential | None = None
    ) -> None:
        self.client = client
        self.product = product
        self._product = GuardedProduct(product, credential)
        self._inquirer = AsyncInquirer(client, self._product)
        self._has_looked = False

    @property
    def credential(self) -> Credential:
        """Where keys are presented, as far as it is known by now."""
        return self._product.presented

    def register(self, requirement: Requirement) -> None:
        """Add a requirement of requests, for `verify` to look at."""
        self._product.requirements.append(requirement)

    async def admit(self, request: HTTPConnection, requirement: Requirement) -> Decision:
        """Check the request's key, and put the decision on the request. Raises `AccessRefused`."""
        self._look_at_routes(request.scope)
        await self._inquirer.keep_up()
        credential = self._product.credential()
        key = credential.key_in(request.headers.getlist(credential.header))
        try:
            asked = _protection.question(
                requirement, request, lambda name: id_in(request.scope, name), key, self.product, self._product.faults
            )
            decision = await self.client.check(
                asked.key, asked.resource, asked.action, tenant=asked.tenant, product=asked.product
            )
        except errors.ApiError as error:
            raise _protection.refusal_for(error) from error
        request.state.gatekey = _protection.ensure_allowed(decision)
        return decision

    async def verify(self, app: Any = None) -> None:
        """Verify before the first request that requests can be served. Call it when a service starts.

        It verifies the templates of the application's routes, the product's spec, and that the client's token may check
        the product. Raises `Misconfigured`. If no server responds, it logs that, and requests are refused until a
        server responds.
        """
        self._has_looked = app is not None
        problems = [] if app is None else list(self._problems_of_routes(app))
        self._product.verify(await self._inquirer.ask(), problems)

    def check_routes(self, app: Any) -> None:
        """Verify only the templates of the application's routes, once all are defined. Raises `Misconfigured`."""
        if problems := list(self._problems_of_routes(app)):
            raise errors.Misconfigured(problems)

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncGenerator[None]:
        """The lifespan of an application: call `verify` when it starts, and close the client when it ends."""
        try:
            await self.verify(app)
            yield
        finally:
            await self.client.close()

    def headers(self, refusal: AccessRefused) -> dict[str, str]:
        """Return the headers of the response to a refused request."""
        if refusal.status == 401:
            credential = self.credential
            return {"www-authenticate": credential.scheme or f'ApiKey header="{credential.header}"'}
        return {"retry-after": "1"} if refusal.status in (429, 503) else {}

    def _look_at_routes(self, scope: Scope) -> None:
        """Log the problems of all routes at the first request, for services that do not `verify`."""
        # A mounted application does not know the parameters of the path before it.
        if not self._has_looked and "app" in scope and "app_root_path" not in scope:
            self._has_looked = True
            for problem in self._problems_of_routes(scope["app"]):
                self._product.faults.report(problem)

    def _problems_of_routes(self, app: Any) -> Iterator[str]:
        for middleware in getattr(app, "user_middleware", ()):
            requirement = middleware.kwargs.get("requirement")
            if (
                middleware.cls is KeyMiddleware
                and isinstance(requirement, _protection.Requirement)
                and requirement.fields
            ):
                yield f"{requirement} takes ids from the path, which is not known before a request is routed"
        for path, parameters, requirements in self._needs_of(getattr(app, "routes", ()), frozenset()):
            for requirement in requirements:
                for name in sorted(requirement.fields - parameters):
                    yield f"{requirement}: the route {path} has no parameter `{name}`"

    def _needs_of(
        self, routes: Iterable[Any], outer: frozenset[str]
    ) -> Iterator[tuple[str, frozenset[str], list[Requirement]]]:
        """Yield the path, the parameters and the requirements of each route."""
        for route in self._effective(routes):
            parameters = outer | frozenset(getattr(route, "param_convertors", ()))
            if isinstance(getattr(route, "original_route", route), Mount):
                parameters -= {"path"} - outer
            yield getattr(route, "path", ""), parameters, list(self._requirements_at(route))
            if getattr(route, "routes", None):
                yield from self._needs_of(route.routes, parameters)

    def _effective(self, routes: Iterable[Any]) -> Iterable[Any]:
        return routes

    def _requirements_at(self, route: Any) -> Iterator[Requirement]:
        app = getattr(route, "app", None)
        while isinstance(app, KeyMiddleware):
            if isinstance(app.requirement, _protection.Requirement):
                yield app.requirement
            app = app.app


class KeyMiddleware:
    """Serves only requests whose key meets their requirement.

    `requirement` is the requirement of all requests, or a function that returns it for each request; None: the request
    needs no key. The requirement can use the path's parameters if the middleware belongs to a route.
    """

    def __init__(
        self, app: ASGIApp, guard: KeyGuard, requirement: Requirement | Callable[[HTTPConnection], Requirement | None]
    ) -> None:
        self.app = app
        self.requirement = requirement
        self._guard = guard
        if isinstance(requirement, _protection.Requirement):
            guard.register(requirement)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it. A refused web socket is closed with 1008."""
        if scope["type"] != "lifespan":
            request = HTTPConnection(scope)
            try:
                requirement = self._requirement_of(request)
                if requirement is not None:
                    await self._guard.admit(request, requirement)
            except AccessRefused as refusal:
                await self._refusal(scope, refusal)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _requirement_of(self, request: HTTPConnection) -> Requirement | None:
        if isinstance(self.requirement, _protection.Requirement):
            return self.requirement
        try:
            return self.requirement(request)
        except errors.InvalidPath as error:
            raise _protection.refusal_for(error) from error

    def _refusal(self, scope: Scope, refusal: AccessRefused) -> ASGIApp:
        if scope["type"] == "websocket":
            return WebSocketClose(_POLICY_VIOLATION, refusal.reason)
        return JSONResponse({"detail": refusal.body}, refusal.status, self._guard.headers(refusal))


def decision_of(request: HTTPConnection) -> Decision:
    """Return the decision about an allowed request. Raises `LookupError` if its key was not checked."""
    decision = getattr(request.state, "gatekey", None)
    if not isinstance(decision, Decision):
        raise LookupError("the request's key was not checked")
    return decision
