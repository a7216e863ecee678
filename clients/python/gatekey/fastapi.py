"""Checks of keys for FastAPI::

guard = KeyGuard(gatekey.AsyncClient(), product="heyoo")
app = FastAPI(lifespan=guard.lifespan)

@app.get("/links/{link}")
async def read_link(link: str, decision: Annotated[Decision, requires(guard, "links/{link}", "read")]): ...
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of the dependency.
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import fastapi.routing
from fastapi import Depends, HTTPException, Security, WebSocketException
from fastapi.openapi.models import APIKey, APIKeyIn, HTTPBearer, SecurityBase
from fastapi.security.base import SecurityBase as SecurityScheme
from starlette.requests import HTTPConnection

from gatekey import _protection, starlette
from gatekey.decisions import Decision
from gatekey.starlette import AccessRefused, Credential, Requirement, decision_of

__all__ = ["Credential", "KeyGuard", "decision_of", "requires"]

_POLICY_VIOLATION = 1008


class KeyGuard(starlette.KeyGuard):
    __doc__ = starlette.KeyGuard.__doc__

    def _effective(self, routes: Iterable[Any]) -> Iterable[Any]:
        # Newer versions keep included routers as they are, and yield their effective routes here.
        effective = getattr(fastapi.routing, "iter_route_contexts", None)
        return effective(routes) if effective else routes

    def _requirements_at(self, route: Any) -> Iterator[Requirement]:
        yield from super()._requirements_at(route)
        waiting = [getattr(route, "dependant", None)]
        while waiting:
            dependant = waiting.pop()
            requirement = getattr(getattr(dependant, "call", None), "requirement", None)
            if isinstance(requirement, _protection.Requirement):
                yield requirement
            waiting += getattr(dependant, "dependencies", ())


def requires(
    guard: starlette.KeyGuard,
    resource: str | Callable[[HTTPConnection], str],
    action: str,
    *,
    tenant: str | Callable[[HTTPConnection], str] | None = None,
) -> Any:
    """Return a dependency that yields the decision about the request's key, or refuses the request.

    `resource` and `tenant` are templates in which `{name}` stands for a parameter of the path, or functions of the
    request. The response to a refused request has the status 401, 403, 400, 429, 500 or 503. Its `detail` holds the
    reason and the missing permissions. A web socket is closed with 1008. `decision_of(request)` also returns the
    decision. Raises `ValueError` for malformed templates.
    """
    requirement = Requirement(resource, action, tenant)
    guard.register(requirement)

    async def admit(connection: HTTPConnection, _: Any = Security(_Scheme(guard))) -> Decision:  # noqa: B008
        try:
            return await guard.admit(connection, requirement)
        except AccessRefused as refusal:
            if connection.scope["type"] == "websocket":
                raise WebSocketException(_POLICY_VIOLATION, refusal.reason) from refusal
            raise HTTPException(refusal.status, refusal.body, guard.headers(refusal)) from refusal

    admit.requirement = requirement  # type: ignore[attr-defined]
    return Depends(admit)


class _Scheme(SecurityScheme):
    """The security scheme in the service's documentation, as far as it is known by then. It refuses no request."""

    def __init__(self, guard: starlette.KeyGuard) -> None:
        self._guard = guard

    @property
    def model(self) -> SecurityBase:  # type: ignore[override]
        credential = self._guard.credential
        if self.scheme_name == "HTTPBearer":
            return HTTPBearer()
        return APIKey.model_validate({"in": APIKeyIn.header, "name": credential.header})

    @property
    def scheme_name(self) -> str:  # type: ignore[override]
        credential = self._guard.credential
        is_bearer = credential.header == "authorization" and credential.scheme.lower() == "bearer"
        return "HTTPBearer" if is_bearer else "APIKeyHeader"

    async def __call__(self) -> None:
        pass
