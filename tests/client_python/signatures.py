"""The public signatures, held by the type checkers of `make types`: this file is checked and never run."""

from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, assert_type

import gatekey
import grpc
from fastapi import FastAPI
from gatekey.fastapi import KeyGuard, requires
from gatekey.grpc import AsyncKeyInterceptor, KeyInterceptor, Requirement, current_decision
from gatekey.starlette import KeyMiddleware
from gatekey.v1.api_key_service_pb2 import ApiKey, CreateApiKeyResponse, DeleteApiKeyResponse, RotateApiKeyResponse
from gatekey.v1.audit_service_pb2 import AuditEvent
from gatekey.v1.check_service_pb2 import CheckConfig
from gatekey.v1.machine_user_service_pb2 import MachineUser
from gatekey.v1.member_service_pb2 import ListPeopleResponse, Member, Person
from gatekey.v1.product_service_pb2 import DeleteProductResponse, Product
from gatekey.v1.product_spec_pb2 import ProductSpec
from gatekey.v1.tenant_service_pb2 import DeleteTenantResponse, Tenant


def checks(key: str) -> None:
    with gatekey.Client(["10.0.0.1:50051", "10.0.0.2:50051"], token=lambda: "gk_", insecure=True) as client:
        decision = client.check(key, "links/abc", "update", tenant="acme", product="heyoo", min_revision=7, timeout=0.5)
        assert_type(decision, gatekey.Decision)
        assert_type(decision.allowed, bool)
        assert_type(gatekey.Client(cache=True), gatekey.Client)
        assert_type(gatekey.AsyncClient(cache=gatekey.Cache(entries=1000, stale_s=30)), gatekey.AsyncClient)
        assert_type(decision.reason, gatekey.Reason)
        assert_type(decision.missing_permissions, tuple[gatekey.Permission, ...])
        assert_type(decision.expire_time, datetime | None)
        assert_type(client.require(key, "links/abc", "update"), gatekey.Decision)
        results = client.check_many([gatekey.Question(key, "links/abc", "update")], timeout=1)
        assert_type(results, list[gatekey.Decision | gatekey.CheckFailed])
        for result in results:
            if isinstance(result, gatekey.CheckFailed):
                assert_type(result.allowed, Literal[False])
                assert_type(result.error, gatekey.ApiError)
    try:
        pass
    except gatekey.AccessDenied as denied:
        assert_type(denied.decision, gatekey.Decision)
    except gatekey.ApiError as failed:
        assert_type(failed.code, grpc.StatusCode)
        assert_type(failed.reason, str)
        assert_type(failed.violations, tuple[gatekey.FieldViolation, ...])


def administration(client: gatekey.Client, spec: ProductSpec) -> None:
    assert_type(client.products.apply(spec, force=True, validate_only=True, timeout=30), Product)
    assert_type(client.products.get("heyoo"), Product)
    assert_type(client.products.list(), Iterator[Product])
    assert_type(client.products.delete("heyoo", force=True), DeleteProductResponse)
    tenants = client.product("heyoo").tenants
    assert_type(tenants.create("acme", display_name="Acme", request_id="…"), Tenant)
    assert_type(tenants.list(show_deleted=True), Iterator[Tenant])
    assert_type(tenants.delete("acme", etag="…"), DeleteTenantResponse)
    tenant = client.tenant("heyoo", "acme", actor="products/heyoo/tenants/acme/members/u_1")
    assert_type(tenant.members.add("u_42", "member", display_name="Kim"), Member)
    assert_type(tenant.members.update("u_42", role="owner"), Member)
    assert_type(tenant.people.list(), Iterator[Person])
    assert_type(tenant.people.page().user_count, int)
    assert_type(tenant.machine_users.create("ci"), MachineUser)
    keys = tenant.keys
    created = keys.create("CI", member="u_42", grants={"campaigns": ["read"]}, ttl=timedelta(days=7), labels={"a": "b"})
    assert_type(created, CreateApiKeyResponse)
    assert_type(keys.get("key_1"), ApiKey)
    assert_type(keys.list(member="u_42"), Iterator[ApiKey])
    assert_type(keys.update("key_1", mode="ALL", expire_time=None), ApiKey)
    assert_type(keys.rotate("key_1", grace=timedelta(hours=1)), RotateApiKeyResponse)
    assert_type(keys.revoke("key_1", reason="leaked", wait=gatekey.EVERYWHERE), ApiKey)
    assert_type(keys.delete("key_1"), DeleteApiKeyResponse)
    assert_type(client.identify("hey_…"), ApiKey)
    assert_type(tenant.audit_events.list(verb="CreateApiKey"), Iterator[AuditEvent])


def paths(client: gatekey.Client, guard: KeyGuard, app: FastAPI) -> None:
    assert_type(gatekey.Path("links", "abc"), gatekey.Path)
    assert_type(client.check("hey_…", gatekey.Path("links", "abc"), "read"), gatekey.Decision)
    assert_type(client.check_config("heyoo"), CheckConfig)
    assert_type(guard.check_routes(app), None)
    FastAPI(lifespan=guard.lifespan)
    gatekey.Path("links", 42)  # type: ignore[arg-type]


def mistakes(client: gatekey.Client) -> None:
    """An `ignore` that is not needed is an error: each of these is found."""
    client.check("hey_…", "links/abc")  # type: ignore[call-arg]
    client.check("hey_…", "links/abc", "read", None)  # type: ignore[call-arg]
    client.check("hey_…", "links/abc", "read", tenat="acme")  # type: ignore[call-arg]
    client.tenant("heyoo", "acme").keys.revoke()  # type: ignore[call-arg]
    client.tenant("heyoo", "acme").keys.create("CI", mode="SOME")  # type: ignore[arg-type]
    client.tenant("heyoo", "acme").keys.create("CI", reason="x")  # type: ignore[call-arg]
    client.check("hey_…", "links/abc", "read").allowed = True  # type: ignore[misc]
    client.tenant("heyoo", "acme").keys.revoke("key_1", wait="everywhere")  # type: ignore[arg-type]
    gatekey.Client(cache=gatekey.Cache(10))  # type: ignore[call-arg]


async def asynchronously(client: gatekey.AsyncClient, key: str) -> None:
    assert_type(await client.check(key, "links/abc", "update", tenant="acme", timeout=0.5), gatekey.Decision)
    assert_type(await client.require(key, "links/abc", "update"), gatekey.Decision)
    assert_type(await client.check_many([]), list[gatekey.Decision | gatekey.CheckFailed])
    keys = client.tenant("heyoo", "acme").keys
    assert_type(await keys.create("CI", member="u_42"), CreateApiKeyResponse)
    assert_type(await keys.rotate("key_1", grace=timedelta(hours=1)), RotateApiKeyResponse)
    assert_type(keys.list(member="u_42"), AsyncIterator[ApiKey])
    async for each in keys.list():
        assert_type(each, ApiKey)
    assert_type(await client.tenant("heyoo", "acme").people.page(), ListPeopleResponse)
    assert_type(await client.products.get("heyoo"), Product)
    assert_type(await client.identify("hey_…"), ApiKey)
    assert_type(await client.check_config(), CheckConfig)
    await keys.create("CI", mode="SOME")  # type: ignore[arg-type]
    await keys.revoke()  # type: ignore[call-arg]


async def token() -> str:
    return "gk_…"


def servers(app: FastAPI) -> None:
    client = gatekey.AsyncClient("gatekey.example:443", token=token, tls=gatekey.TLS(ca="ca.pem"), batch=False)
    guard = KeyGuard(client, product="heyoo")

    @app.get("/links/{link}")
    async def read(link: str, decision: Annotated[gatekey.Decision, requires(guard, "links/{link}", "read")]) -> str:
        assert_type(decision, gatekey.Decision)
        return link

    app.add_middleware(KeyMiddleware, guard=guard, requirement=Requirement("links", "read"))
    requirements: dict[str, Requirement | None] = {
        "/shop.v1.Links/GetLink": Requirement("links/{link_id}", "read"),
        "/shop.v1.Open/*": None,
    }
    interceptors: list[Any] = [
        KeyInterceptor(gatekey.Client(), requirements),
        AsyncKeyInterceptor(client, requirements),
    ]
    assert interceptors
    assert_type(current_decision(), gatekey.Decision)
