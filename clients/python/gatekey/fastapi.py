"""Checks of keys for FastAPI::

guard = KeyGuard(gatekey.AsyncClient(), product="heyoo")

@app.get("/links/{link}")
async def read_link(link: str, decision: Annotated[Decision, requires(guard, "links/{link}", "read")]): ...
"""

# Without the future's annotations: FastAPI reads those of the dependency.
from collections.abc import Callable
from typing import Any

from fastapi import Depends, HTTPException, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.requests import HTTPConnection

from gatekey.decisions import Decision
from gatekey.starlette import Credential, KeyGuard, Need, Refusal, decision_of

__all__ = ["Credential", "KeyGuard", "decision_of", "requires"]


def requires(
    guard: KeyGuard,
    resource: str | Callable[[HTTPConnection], str],
    action: str,
    *,
    tenant: str | Callable[[HTTPConnection], str] | None = None,
) -> Any:
    """A dependency that yields the decision about the request's key, or refuses the request.

    `resource` and `tenant` are texts in which `{name}` stands for a parameter of the path, or functions of the request.
    The answer to a refused request has the status 401, 403, 400, 429 or 503, and tells the reason and the missing
    permissions under `detail`. The decision is on the request as well: `decision_of(request)`.
    """
    need = Need(resource, action, tenant)

    async def admit(request: Request, _: Any = Security(_scheme(guard.credential))) -> Decision:  # noqa: B008
        try:
            return await guard.admit(request, need)
        except Refusal as refusal:
            raise HTTPException(refusal.status, refusal.body, guard.headers(refusal)) from refusal

    return Depends(admit)


def _scheme(credential: Credential) -> HTTPBearer | APIKeyHeader:
    """What the documentation of the service tells about its keys; it refuses nothing."""
    if credential.header == "authorization" and credential.scheme.lower() == "bearer":
        return HTTPBearer(auto_error=False)
    return APIKeyHeader(name=credential.header, auto_error=False)
