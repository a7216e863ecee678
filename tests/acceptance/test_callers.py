"""Who may call: every RPC of every service, with tokens that are missing, wrong, narrow or of another product."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg
import grpc
import pytest
from gatekey.core import builtin
from gatekey.core.decisions import RULES as RULES_NUMBER
from gatekey.core.secrets import new_secret
from gatekey.v1 import (
    api_key_service_pb2,
    audit_service_pb2,
    cache_service_pb2,
    check_service_pb2,
    machine_user_service_pb2,
    member_service_pb2,
    product_service_pb2,
    tenant_service_pb2,
    types_pb2,
)
from gatekey_server.rpc.server import SERVICES
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support.freshness import applied_everywhere
from tests.support.server import Client, Rpc, problem_of, read_example

TENANT = "products/heyoo/tenants/acme"
KEY = f"{TENANT}/apiKeys/key_00000000000000000000000000"
MASK = FieldMask(paths=["display_name"])


@dataclass(frozen=True)
class Rule:
    """What one RPC needs, and a request that would be right if the caller may make it."""

    resource: str
    action: str
    request: Message


RULES: Mapping[str, Rule] = {
    "CheckService.Check": Rule(
        "products/heyoo/checks",
        "create",
        check_service_pb2.CheckRequest(key="hey_x", resource="campaigns", action="read"),
    ),
    "CheckService.BatchCheck": Rule(
        "products/heyoo/checks",
        "create",
        check_service_pb2.BatchCheckRequest(
            checks=[check_service_pb2.CheckRequest(key="hey_x", resource="campaigns", action="read")]
        ),
    ),
    "CheckService.GetCheckConfig": Rule(
        "products/heyoo/checks",
        "create",
        check_service_pb2.GetCheckConfigRequest(name="products/heyoo/checkConfig"),
    ),
    "CacheService.Resolve": Rule(
        "products/heyoo/checks", "create", cache_service_pb2.ResolveRequest(keys=["hey_x"], rules=RULES_NUMBER)
    ),
    "CacheService.Sync": Rule("products/heyoo/checks", "create", cache_service_pb2.SyncRequest()),
    "CacheService.ReportUses": Rule(
        "products/heyoo/checks",
        "create",
        cache_service_pb2.ReportUsesRequest(uses=[cache_service_pb2.KeyUse(api_key=KEY)]),
    ),
    "ProductService.ApplyProduct": Rule(
        "products/heyoo", "apply", product_service_pb2.ApplyProductRequest(spec=read_example("heyoo"))
    ),
    "ProductService.GetProduct": Rule(
        "products/heyoo", "get", product_service_pb2.GetProductRequest(name="products/heyoo")
    ),
    "ProductService.ListProducts": Rule("products", "list", product_service_pb2.ListProductsRequest()),
    "ProductService.DeleteProduct": Rule(
        "products/heyoo", "delete", product_service_pb2.DeleteProductRequest(name="products/heyoo")
    ),
    "TenantService.CreateTenant": Rule(
        "products/heyoo/tenants",
        "create",
        tenant_service_pb2.CreateTenantRequest(parent="products/heyoo", tenant_id="acme"),
    ),
    "TenantService.GetTenant": Rule(TENANT, "get", tenant_service_pb2.GetTenantRequest(name=TENANT)),
    "TenantService.ListTenants": Rule(
        "products/heyoo/tenants", "list", tenant_service_pb2.ListTenantsRequest(parent="products/heyoo")
    ),
    "TenantService.DeleteTenant": Rule(TENANT, "delete", tenant_service_pb2.DeleteTenantRequest(name=TENANT)),
    "MemberService.AddMember": Rule(
        f"{TENANT}/members",
        "create",
        member_service_pb2.AddMemberRequest(
            parent=TENANT, member_id="u", member=member_service_pb2.Member(role="owner")
        ),
    ),
    "MemberService.GetMember": Rule(
        f"{TENANT}/members/u", "get", member_service_pb2.GetMemberRequest(name=f"{TENANT}/members/u")
    ),
    "MemberService.ListPeople": Rule(f"{TENANT}/members", "list", member_service_pb2.ListPeopleRequest(parent=TENANT)),
    "MemberService.RemoveMember": Rule(
        f"{TENANT}/members/u", "delete", member_service_pb2.RemoveMemberRequest(name=f"{TENANT}/members/u")
    ),
    "MachineUserService.CreateMachineUser": Rule(
        f"{TENANT}/machineUsers",
        "create",
        machine_user_service_pb2.CreateMachineUserRequest(parent=TENANT, machine_user_id="mu"),
    ),
    "MachineUserService.GetMachineUser": Rule(
        f"{TENANT}/machineUsers/mu",
        "get",
        machine_user_service_pb2.GetMachineUserRequest(name=f"{TENANT}/machineUsers/mu"),
    ),
    "MachineUserService.ListMachineUsers": Rule(
        f"{TENANT}/machineUsers", "list", machine_user_service_pb2.ListMachineUsersRequest(parent=TENANT)
    ),
    "MachineUserService.DeleteMachineUser": Rule(
        f"{TENANT}/machineUsers/mu",
        "delete",
        machine_user_service_pb2.DeleteMachineUserRequest(name=f"{TENANT}/machineUsers/mu"),
    ),
    "ApiKeyService.CreateApiKey": Rule(
        f"{TENANT}/apiKeys",
        "create",
        api_key_service_pb2.CreateApiKeyRequest(
            parent=TENANT, api_key=api_key_service_pb2.ApiKey(display_name="Key", owner=f"{TENANT}/members/u")
        ),
    ),
    "ApiKeyService.GetApiKey": Rule(
        f"{TENANT}/apiKeys/key_00000000000000000000000000",
        "get",
        api_key_service_pb2.GetApiKeyRequest(name=f"{TENANT}/apiKeys/key_00000000000000000000000000"),
    ),
    "ApiKeyService.ListApiKeys": Rule(
        f"{TENANT}/apiKeys", "list", api_key_service_pb2.ListApiKeysRequest(parent=TENANT)
    ),
    "ApiKeyService.DeleteApiKey": Rule(
        f"{TENANT}/apiKeys/key_00000000000000000000000000",
        "delete",
        api_key_service_pb2.DeleteApiKeyRequest(name=f"{TENANT}/apiKeys/key_00000000000000000000000000"),
    ),
    "TenantService.SuspendTenant": Rule(TENANT, "suspend", tenant_service_pb2.SuspendTenantRequest(name=TENANT)),
    "TenantService.ResumeTenant": Rule(TENANT, "resume", tenant_service_pb2.ResumeTenantRequest(name=TENANT)),
    "TenantService.UndeleteTenant": Rule(TENANT, "undelete", tenant_service_pb2.UndeleteTenantRequest(name=TENANT)),
    "TenantService.UpdateTenant": Rule(
        TENANT,
        "update",
        tenant_service_pb2.UpdateTenantRequest(tenant=tenant_service_pb2.Tenant(name=TENANT), update_mask=MASK),
    ),
    "MemberService.UpdateMember": Rule(
        f"{TENANT}/members/u",
        "update",
        member_service_pb2.UpdateMemberRequest(
            member=member_service_pb2.Member(name=f"{TENANT}/members/u"), update_mask=MASK
        ),
    ),
    "MachineUserService.UpdateMachineUser": Rule(
        f"{TENANT}/machineUsers/mu",
        "update",
        machine_user_service_pb2.UpdateMachineUserRequest(
            machine_user=machine_user_service_pb2.MachineUser(name=f"{TENANT}/machineUsers/mu"), update_mask=MASK
        ),
    ),
    "ApiKeyService.DisableApiKey": Rule(KEY, "disable", api_key_service_pb2.DisableApiKeyRequest(name=KEY)),
    "ApiKeyService.EnableApiKey": Rule(KEY, "enable", api_key_service_pb2.EnableApiKeyRequest(name=KEY)),
    "ApiKeyService.RevokeApiKey": Rule(KEY, "revoke", api_key_service_pb2.RevokeApiKeyRequest(name=KEY)),
    "ApiKeyService.RotateApiKey": Rule(KEY, "rotate", api_key_service_pb2.RotateApiKeyRequest(name=KEY)),
    "ApiKeyService.UpdateApiKey": Rule(
        KEY,
        "update",
        api_key_service_pb2.UpdateApiKeyRequest(
            api_key=api_key_service_pb2.ApiKey(name=KEY, display_name="Key"), update_mask=MASK
        ),
    ),
    "ApiKeyService.IdentifySecret": Rule(
        f"{TENANT}/apiKeys", "identify", api_key_service_pb2.IdentifySecretRequest(secret="hey_x")
    ),
    "AuditService.ListAuditChains": Rule(
        "products/heyoo/auditEvents", "list", audit_service_pb2.ListAuditChainsRequest(parent="products/heyoo")
    ),
    "AuditService.ListAuditEvents": Rule(
        f"{TENANT}/auditEvents", "list", audit_service_pb2.ListAuditEventsRequest(parent=TENANT)
    ),
}

METHODS = {f"{service.name}.{method.name}": method for service in SERVICES.values() for method in service.methods}
ABOUT_KEYS = {"CheckService.Check", "CheckService.BatchCheck", "CacheService.Resolve"}
ALL_ACTIONS = sorted({action for collection in builtin.SPEC.collections for action in collection.actions})
every_method = pytest.mark.parametrize("name", METHODS)


def test_every_rpc_has_a_rule() -> None:
    """A new RPC fails here until it says what it needs."""
    assert set(RULES) == set(METHODS)


async def call(client: Client, method: MethodDescriptor, request: Message, **options: Any) -> Message:
    """Call a method by its descriptor."""
    send: grpc.aio.UnaryUnaryMultiCallable[Message, Message] = client.channel.unary_unary(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    answer: Message = await send(request, timeout=10, **options)
    return answer


async def snapshot(sql: "asyncpg.Connection[asyncpg.Record]") -> list[Any]:
    """What the heyoo part of the database holds."""
    rows: list[Any] = await sql.fetch(
        """
        select product_id, spec_version, tenant_uid, tenant.delete_time, principal_uid, key_uid from product
        left join tenant using (product_id)
        left join principal using (tenant_uid)
        left join api_key using (tenant_uid, principal_uid)
        where product_id = 'heyoo' order by tenant_uid, principal_uid, key_uid
        """
    )
    return rows


def told(answer: check_service_pb2.CheckResponse) -> check_service_pb2.CheckResponse:
    """What an answer tells but its revision, which others raise meanwhile."""
    answer.revision = 0
    return answer


def assert_key_unknown(answer: Message) -> None:
    """The answer about one key, alone or in a batch, is that for one that does not exist."""
    if isinstance(answer, check_service_pb2.BatchCheckResponse):
        (result,) = answer.results
        answer = result.response
    if isinstance(answer, cache_service_pb2.ResolveResponse):
        (resolved,) = answer.results
        assert not resolved.HasField("key")
        return
    assert isinstance(answer, check_service_pb2.CheckResponse)
    assert not answer.allowed
    assert answer.reason == answer.REASON_KEY_UNKNOWN


async def assert_refused(client: Client, name: str, code: grpc.StatusCode, reason: str, **options: Any) -> None:
    """The RPC is refused for the caller's sake."""
    with pytest.raises(grpc.RpcError) as raised:
        await call(client, METHODS[name], RULES[name].request, **options)
    problem = problem_of(raised.value)
    assert (problem.code, problem.reason) == (code, reason)


@pytest.fixture(scope="module")
async def clients(root: Client) -> AsyncIterator[dict[str, Client]]:
    """Clients whose tokens do not open heyoo, by what is wrong with them."""
    tenant = await root.create_tenant("bitsy", "callers")
    gatekey = "products/gatekey/tenants/system"
    tokens = {
        "missing": None,
        "empty": "",
        "garbage": "nonsense",
        "unknown": new_secret("gk_"),
        "broken": (await root.create_token({"*": ["*"]}))[:-1] + "!",
        "key_of_a_product": (await root.create_key(tenant, grants={"*": ["read"]})).secret,
        "other_product": await root.create_token({"products/bitsy": ["*"]}),
        "read_only": (await root.create_key(gatekey, mode="READ_ONLY", new_machine_user=True)).secret,
    }
    made = {name: root.with_token(token) for name, token in tokens.items()}
    yield made
    for client in made.values():
        await client.close()


@every_method
@pytest.mark.parametrize(
    ("which", "reason"),
    [
        ("missing", "TOKEN_MISSING"),
        ("empty", "TOKEN_INVALID"),
        ("garbage", "TOKEN_INVALID"),
        ("unknown", "TOKEN_INVALID"),
        ("broken", "TOKEN_INVALID"),
        ("key_of_a_product", "TOKEN_INVALID"),
    ],
)
async def test_no_valid_token_no_answer(clients: dict[str, Client], name: str, which: str, reason: str) -> None:
    await assert_refused(clients[which], name, grpc.StatusCode.UNAUTHENTICATED, reason)


@every_method
@pytest.mark.parametrize(
    "values", [("Basic abc",), ("Bearer",), ("{token}",), ("Bearer {token}", "Bearer {token}")], ids=str
)
async def test_other_forms_of_authorization_are_refused(
    root: Client, clients: dict[str, Client], name: str, values: tuple[str, ...]
) -> None:
    metadata = tuple(("authorization", value.format(token=root.token)) for value in values)
    await assert_refused(clients["missing"], name, grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID", metadata=metadata)


@every_method
async def test_a_token_for_another_product_sees_nothing(
    clients: dict[str, Client], sql: "asyncpg.Connection[asyncpg.Record]", name: str
) -> None:
    before = await snapshot(sql)
    if name in ABOUT_KEYS:
        assert_key_unknown(await call(clients["other_product"], METHODS[name], RULES[name].request))
    elif name.startswith("CacheService."):
        # It may check another product. That these tell nothing of this one is shown in tests/client_python.
        await call(clients["other_product"], METHODS[name], RULES[name].request)
    elif name == "ApiKeyService.IdentifySecret":
        await assert_refused(clients["other_product"], name, grpc.StatusCode.NOT_FOUND, "SECRET_NOT_FOUND")
    elif name == "ProductService.ListProducts":
        await assert_refused(clients["other_product"], name, grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
    else:
        # The same answer as for a product that does not exist.
        await assert_refused(clients["other_product"], name, grpc.StatusCode.NOT_FOUND, "PRODUCT_NOT_FOUND")
    assert await snapshot(sql) == before


@every_method
async def test_every_action_but_the_needed_one_is_not_enough(
    root: Client, sql: "asyncpg.Connection[asyncpg.Record]", name: str
) -> None:
    rule = RULES[name]
    others = [action for action in ALL_ACTIONS if action != rule.action]
    client = root.with_token(await root.create_token({"products": others}))
    before = await snapshot(sql)
    try:
        if name in ABOUT_KEYS:
            assert_key_unknown(await call(client, METHODS[name], rule.request))
        elif name == "ApiKeyService.IdentifySecret":
            await assert_refused(client, name, grpc.StatusCode.NOT_FOUND, "SECRET_NOT_FOUND")
        else:
            await assert_refused(client, name, grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
    finally:
        await client.close()
    assert await snapshot(sql) == before


@every_method
async def test_the_needed_action_on_the_needed_resource_is_enough(root: Client, name: str) -> None:
    """Not refused for the caller's sake: the tenant does not exist, and that is what is answered."""
    rule = RULES[name]
    if name in {"ProductService.DeleteProduct", "TenantService.CreateTenant"}:
        return  # would change what other tests use; shown by their own tests
    client = root.with_token(await root.create_token({rule.resource: [rule.action]}))
    try:
        await call(client, METHODS[name], rule.request)
    except grpc.RpcError as error:
        assert problem_of(error).reason in {"TENANT_NOT_FOUND", "SECRET_NOT_FOUND"}  # noqa: PT017 - either is fine
    finally:
        await client.close()


async def test_a_check_token_checks_its_product_and_does_nothing_else(root: Client, fresh_id: str) -> None:
    tenant = await root.create_tenant("heyoo", fresh_id)
    owner = await root.add_member(tenant, "owner", "owner")
    key = (await root.create_key(tenant, owner)).secret
    bitsy_tenant = await root.create_tenant("bitsy", fresh_id)
    bitsy_key = (await root.create_key(bitsy_tenant, grants={"*": ["read"]})).secret
    client = root.with_token(await root.create_token({"products/heyoo/checks": ["create"]}))
    try:
        assert await client.verdict(key, "campaigns", "read") == "ALLOWED"
        unknown = await client.check(new_secret("bsy_"), "links", "read")
        # A key of a product that the caller may not check is not told from one that does not exist.
        assert told(await client.check(bitsy_key, "links", "read")) == told(unknown)
        assert await root.verdict(bitsy_key, "links", "read") == "ALLOWED"
        with pytest.raises(grpc.RpcError) as raised:
            await client.tenants.GetTenant(tenant_service_pb2.GetTenantRequest(name=tenant))
        assert problem_of(raised.value).metadata == {"resource": tenant, "action": "get"}
    finally:
        await client.close()


async def test_a_key_of_another_product_is_unknown_to_who_names_its_own(root: Client, fresh_id: str) -> None:
    tenant = await root.create_tenant("codeqr", fresh_id)
    owner = await root.add_member(tenant, "owner", "owner")
    key = (await root.create_key(tenant, owner)).secret
    request = check_service_pb2.CheckRequest(key=key, resource="links/a", action="read")
    assert (await root.checks.Check(request)).allowed
    request.product = "codeqr"
    assert (await root.checks.Check(request)).allowed
    unknown = await root.check(new_secret("codeqr_"), "links/a", "read")
    request.product = "bitsy"
    assert told(await root.checks.Check(request)) == told(unknown)
    request.product = ""
    with pytest.raises(grpc.RpcError) as raised:
        await root.checks.Check(request)
    assert problem_of(raised.value).fields == {"product": "ID_REQUIRED"}


async def test_a_token_that_ends_leaves_none_behind_that_does_not(root: Client) -> None:
    system = "products/gatekey/tenants/system"
    end = Timestamp()
    end.GetCurrentTime()
    end.seconds += 60
    maker = await root.create_key(system, mode="ALL", new_machine_user=True, expire_time=end)
    client = root.with_token(maker.secret)
    expiries: tuple[dict[str, Any], ...] = ({}, {"expire_time": Timestamp(seconds=end.seconds + 1)})
    for fields in expiries:
        with pytest.raises(grpc.RpcError) as raised:
            await client.create_key(system, mode="ALL", new_machine_user=True, **fields)
        assert problem_of(raised.value).reason == "TOKEN_EXCEEDS_CALLER"
    assert (await client.create_key(system, mode="ALL", new_machine_user=True, expire_time=end)).secret
    await client.close()


async def test_a_read_only_token_changes_nothing(root: Client, clients: dict[str, Client], fresh_id: str) -> None:
    client = clients["read_only"]
    assert (await client.products.GetProduct(product_service_pb2.GetProductRequest(name="products/heyoo"))).name
    with pytest.raises(grpc.RpcError) as raised:
        await client.create_tenant("heyoo", fresh_id)
    assert problem_of(raised.value).reason == "PERMISSION_MISSING"
    assert await client.verdict(root.token or "", "products", "list") == "KEY_UNKNOWN"


async def test_a_grant_on_one_tenant_does_not_open_another(root: Client, fresh_id: str) -> None:
    mine = await root.create_tenant("heyoo", fresh_id)
    other = await root.create_tenant("heyoo", f"{fresh_id}x")
    client = root.with_token(await root.create_token({mine: ["*"]}))
    try:
        owner = await client.add_member(mine, "owner", "owner")
        with pytest.raises(grpc.RpcError) as raised:
            await client.add_member(other, "owner", "owner")
        assert problem_of(raised.value).reason == "PERMISSION_MISSING"
        with pytest.raises(grpc.RpcError) as raised:
            await client.create_key(other, owner)
        assert problem_of(raised.value).reason == "PERMISSION_MISSING"
        others_owner = await root.add_member(other, "owner", "owner")
        with pytest.raises(grpc.RpcError) as raised:
            await client.create_key(mine, others_owner)
        assert problem_of(raised.value).fields == {"api_key.owner": "OWNER_OF_OTHER_TENANT"}
    finally:
        await client.close()


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "ALL"},
        {"mode": "READ_ONLY"},
        {"mode": "RESTRICTED", "grants": {"*": ["*"]}},
        {"mode": "RESTRICTED", "grants": {"products/bitsy": ["get"]}},
        {"mode": "RESTRICTED", "grants": {"products/heyoo/checks": ["*"]}},
        {"mode": "RESTRICTED", "grants": {"products/*/checks": ["create"]}},
        {"mode": "RESTRICTED", "grants": {"products/heyoo": ["create"]}},
    ],
    ids=str,
)
async def test_a_token_cannot_make_a_stronger_one(root: Client, options: dict[str, Any]) -> None:
    grants = {
        "products/gatekey/tenants/system/apiKeys": ["create"],
        "products/gatekey/tenants/system/machineUsers": ["create"],
        "products/heyoo/checks": ["create"],
    }
    client = root.with_token(await root.create_token(grants))
    try:
        with pytest.raises(grpc.RpcError) as raised:
            await client.create_key("products/gatekey/tenants/system", new_machine_user=True, **options)
        assert problem_of(raised.value).reason == "TOKEN_EXCEEDS_CALLER"
        weaker = await client.create_token({"products/heyoo/checks": ["create"]})
        assert weaker.startswith("gk_")
    finally:
        await client.close()


async def test_a_deleted_token_stops_working(root: Client) -> None:
    created = await root.create_key(
        "products/gatekey/tenants/system",
        mode="RESTRICTED",
        grants={"products": ["list"]},
        new_machine_user=True,
    )
    client = root.with_token(created.secret)
    try:
        await client.products.ListProducts(product_service_pb2.ListProductsRequest())
        await root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=created.api_key.name))
        await assert_refused(client, "ProductService.ListProducts", grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
    finally:
        await client.close()


@pytest.mark.parametrize("column", ["revoke_time", "disable_time", "expire_time"])
async def test_a_token_that_is_no_longer_good_is_refused(
    root: Client, sql: "asyncpg.Connection[asyncpg.Record]", column: str
) -> None:
    created = await root.create_key(
        "products/gatekey/tenants/system", mode="ALL", new_machine_user=True, name=f"Token {column}"
    )
    changed = await sql.execute(
        f"update api_key set {column} = now() where display_name = $1",
        f"Token {column}",
    )
    assert changed == "UPDATE 1"
    await applied_everywhere(sql)
    client = root.with_token(created.secret)
    try:
        for name in METHODS:
            await assert_refused(client, name, grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
    finally:
        await client.close()


async def test_the_built_in_product_cannot_be_changed(root: Client) -> None:
    product = await root.products.GetProduct(product_service_pb2.GetProductRequest(name="products/gatekey"))
    product.spec.secret_keys.default_mode = types_pb2.ACCESS_MODE_ALL
    attempts: tuple[tuple[Rpc, Message, str], ...] = (
        (root.products.ApplyProduct, product_service_pb2.ApplyProductRequest(spec=product.spec), "PRODUCT_BUILT_IN"),
        (
            root.products.DeleteProduct,
            product_service_pb2.DeleteProductRequest(name="products/gatekey", force=True),
            "PRODUCT_BUILT_IN",
        ),
        (
            root.tenants.DeleteTenant,
            tenant_service_pb2.DeleteTenantRequest(name="products/gatekey/tenants/system"),
            "TENANT_BUILT_IN",
        ),
    )
    for rpc, request, reason in attempts:
        with pytest.raises(grpc.RpcError) as raised:
            await rpc(request)
        assert problem_of(raised.value).reason == reason


async def test_health_and_reflection_answer_without_a_token(clients: dict[str, Client]) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    channel = clients["missing"].channel
    for service in ("", *SERVICES):
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    answers = [answer async for answer in stub.ServerReflectionInfo(iter([request]))]
    listed = {service.name for service in answers[0].list_services_response.service}
    assert listed == {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
