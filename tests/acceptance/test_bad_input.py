"""Bad input: each with its reason and field, and nothing changed."""

from typing import Any

import asyncpg
import grpc
import pytest
from gatekey.v1 import (
    api_key_service_pb2,
    audit_service_pb2,
    check_service_pb2,
    machine_user_service_pb2,
    member_service_pb2,
    product_service_pb2,
    tenant_service_pb2,
    types_pb2,
)
from gatekey_server.rpc.wire import paging
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support.server import Client, Rpc, problem_of, read_example

INVALID = grpc.StatusCode.INVALID_ARGUMENT
TENANT = "products/heyoo/tenants/bad-input"
MEMBER = f"{TENANT}/members/owner"
NUL = "a\x00b"


def key_request(**fields: Any) -> api_key_service_pb2.CreateApiKeyRequest:
    """A creation that is right but for `fields`."""
    mode = types_pb2.ACCESS_MODE_RESTRICTED if "grants" in fields else types_pb2.ACCESS_MODE_ALL
    key = {"display_name": "Key", "owner": MEMBER, "mode": mode, **fields}
    return api_key_service_pb2.CreateApiKeyRequest(parent=TENANT, api_key=api_key_service_pb2.ApiKey(**key))


def check_request(**fields: Any) -> check_service_pb2.CheckRequest:
    """A check that is right but for `fields`."""
    return check_service_pb2.CheckRequest(**{"key": "hey_x", "resource": "campaigns/a", "action": "read", **fields})


@pytest.fixture(scope="module")
async def tenant(root: Client) -> str:
    """A tenant with an owner."""
    name = await root.create_tenant("heyoo", "bad-input")
    await root.add_member(name, "owner", "owner")
    return name


async def everything(sql: "asyncpg.Connection[asyncpg.Record]") -> list[Any]:
    """A fingerprint of all tables."""
    tables = ("product", "secret_prefix", "tenant", "principal", "api_key", "secret")
    return [
        await sql.fetchval(f"select md5(coalesce(string_agg(t::text, '|' order by t::text), '')) from {table} t")
        for table in tables
    ]


async def assert_refused(
    rpc: Any, request: Message, field: str, reason: str, sql: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """The request is refused for this field and reason, and changed nothing."""
    before = await everything(sql)
    with pytest.raises(grpc.RpcError) as raised:
        await rpc(request, timeout=10)
    problem = problem_of(raised.value)
    assert (problem.code, problem.fields.get(field)) == (INVALID, reason), problem
    assert await everything(sql) == before


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"key": ""}, "key", "KEY_REQUIRED"),
        ({"resource": ""}, "resource", "RESOURCE_REQUIRED"),
        ({"resource": "a" * 1025}, "resource", "RESOURCE_TOO_LONG"),
        ({"resource": "a" * 257}, "resource", "RESOURCE_INVALID"),
        ({"resource": "/".join("a" * 17)}, "resource", "RESOURCE_TOO_LONG"),
        ({"resource": "links/.."}, "resource", "RESOURCE_INVALID"),
        ({"resource": "../links"}, "resource", "RESOURCE_INVALID"),
        ({"resource": "links/."}, "resource", "RESOURCE_INVALID"),
        ({"resource": "links//a"}, "resource", "RESOURCE_INVALID"),
        ({"resource": "/links"}, "resource", "RESOURCE_INVALID"),
        ({"resource": "links/"}, "resource", "RESOURCE_INVALID"),
        ({"resource": "links/*"}, "resource", "RESOURCE_INVALID"),
        ({"resource": "*"}, "resource", "RESOURCE_INVALID"),
        ({"resource": f"links/{NUL}"}, "resource", "RESOURCE_INVALID"),
        ({"resource": "links/a b"}, "resource", "RESOURCE_INVALID"),
        ({"resource": "links/\u00e9"}, "resource", "RESOURCE_INVALID"),
        ({"resource": "links\\a"}, "resource", "RESOURCE_INVALID"),
        ({"resource": "links?a=b"}, "resource", "RESOURCE_INVALID"),
        ({"action": ""}, "action", "ACTION_REQUIRED"),
        ({"action": "*"}, "action", "ACTION_INVALID"),
        ({"action": NUL}, "action", "ACTION_INVALID"),
        ({"action": "a" * 65}, "action", "ACTION_INVALID"),
        ({"tenant": ""}, "tenant", "ID_REQUIRED"),
        ({"tenant": "a/b"}, "tenant", "ID_INVALID"),
        ({"tenant": NUL}, "tenant", "ID_INVALID"),
        ({"tenant": "a" * 129}, "tenant", "ID_INVALID"),
    ],
    ids=repr,
)
async def test_check(
    root: Client, sql: "asyncpg.Connection[asyncpg.Record]", fields: dict[str, str], field: str, reason: str
) -> None:
    await assert_refused(root.checks.Check, check_request(**fields), field, reason, sql)


@pytest.mark.parametrize(
    "key", ["x", "hey_", "a" * 100_000, NUL, "\u00e9" * 40, "hey_" + "0" * 38, " ", "Bearer hey_x"], ids=repr
)
async def test_what_cannot_be_a_key_is_an_unknown_key(root: Client, key: str) -> None:
    assert await root.verdict(key[:100_000], "campaigns/a", "read") == "KEY_UNKNOWN"


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"display_name": ""}, "api_key.display_name", "DISPLAY_NAME_REQUIRED"),
        ({"display_name": "  "}, "api_key.display_name", "DISPLAY_NAME_REQUIRED"),
        ({"display_name": "a" * 129}, "api_key.display_name", "DISPLAY_NAME_TOO_LONG"),
        ({"display_name": NUL}, "api_key.display_name", "TEXT_INVALID"),
        ({"display_name": "a\nb"}, "api_key.display_name", "DISPLAY_NAME_INVALID"),
        ({"display_name": "a\u202eb"}, "api_key.display_name", "DISPLAY_NAME_INVALID"),
        ({"mode": 99}, "api_key.mode", "ENUM_UNKNOWN"),
        ({"kind": 99}, "api_key.kind", "ENUM_UNKNOWN"),
        ({"kind": -1}, "api_key.kind", "ENUM_UNKNOWN"),
        ({"owner": ""}, "api_key.owner", "OWNER_REQUIRED"),
        ({"owner": "owner"}, "api_key.owner", "NAME_INVALID"),
        ({"owner": f"{TENANT}/members/"}, "api_key.owner", "NAME_INVALID"),
        ({"owner": f"{TENANT}/members/.."}, "api_key.owner", "NAME_INVALID"),
        ({"owner": f"{TENANT}/members/{NUL}"}, "api_key.owner", "TEXT_INVALID"),
        ({"owner": "products/heyoo/tenants/other/members/owner"}, "api_key.owner", "OWNER_OF_OTHER_TENANT"),
        ({"owner": "products/bitsy/tenants/bad-input/members/owner"}, "api_key.owner", "OWNER_OF_OTHER_TENANT"),
        ({"mode": 3}, "api_key.grants", "GRANTS_REQUIRED"),
        (
            {"mode": 3, "grants": [types_pb2.Grant(resource="tags//x", actions=["read"])]},
            "api_key.grants[0].resource",
            "RESOURCE_INVALID",
        ),
        (
            {"mode": 3, "grants": [types_pb2.Grant(resource="tagz", actions=["read"])]},
            "api_key.grants[0].resource",
            "RESOURCE_UNKNOWN",
        ),
        (
            {"mode": 3, "grants": [types_pb2.Grant(resource="tags", actions=["reed"])]},
            "api_key.grants[0].actions[0]",
            "ACTION_UNKNOWN",
        ),
        (
            {"mode": 3, "grants": [types_pb2.Grant(resource="tags", actions=["read"])] * 257},
            "api_key.grants",
            "TOO_MANY",
        ),
        ({"expire_time": Timestamp(seconds=1)}, "api_key.expire_time", "EXPIRE_TIME_PAST"),
        ({"expire_time": Timestamp(seconds=1 << 60)}, "api_key.expire_time", "TIME_INVALID"),
        ({"expire_time": Timestamp(seconds=4_000_000_000, nanos=-5)}, "api_key.expire_time", "TIME_INVALID"),
    ],
    ids=lambda value: repr(value)[:60],
)
async def test_create_api_key(
    root: Client,
    tenant: str,
    sql: "asyncpg.Connection[asyncpg.Record]",
    fields: dict[str, Any],
    field: str,
    reason: str,
) -> None:
    assert tenant == TENANT
    await assert_refused(root.keys.CreateApiKey, key_request(**fields), field, reason, sql)


async def test_create_api_key_for_a_machine_user(
    root: Client, tenant: str, sql: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    assert tenant == TENANT
    request = key_request()
    request.new_machine_user.machine_user_id = "mu"
    await assert_refused(root.keys.CreateApiKey, request, "api_key.owner", "OWNER_NOT_ALLOWED", sql)
    request = key_request(owner="")
    request.new_machine_user.machine_user_id = "a/b"
    await assert_refused(root.keys.CreateApiKey, request, "new_machine_user.machine_user_id", "ID_INVALID", sql)
    nothing = api_key_service_pb2.CreateApiKeyRequest(parent=TENANT)
    await assert_refused(root.keys.CreateApiKey, nothing, "api_key", "API_KEY_REQUIRED", sql)


@pytest.mark.parametrize("bad_id", ["", ".", "..", "-", "a/b", "a b", NUL, "\u00e9", "a" * 129, "*", "a?b", "a#b"])
async def test_ids(root: Client, tenant: str, sql: "asyncpg.Connection[asyncpg.Record]", bad_id: str) -> None:
    assert tenant == TENANT
    reason = ("TEXT_INVALID" if bad_id == NUL else "ID_INVALID") if bad_id else "ID_REQUIRED"
    create = tenant_service_pb2.CreateTenantRequest(parent="products/heyoo", tenant_id=bad_id)
    await assert_refused(root.tenants.CreateTenant, create, "tenant_id", reason, sql)
    add = member_service_pb2.AddMemberRequest(
        parent=TENANT, member_id=bad_id, member=member_service_pb2.Member(role="owner")
    )
    await assert_refused(root.members.AddMember, add, "member_id", reason, sql)


@pytest.mark.parametrize(
    "bad_name",
    [
        "",
        "heyoo",
        "products/",
        "products/HEYOO",
        "products/heyoo/",
        "/products/heyoo",
        "tenants/heyoo",
        "products/heyoo/tenants",
        f"products/{NUL}",
        "products/..",
        "products/*",
        "products/-",
        "products/" + "a" * 64,
    ],
    ids=repr,
)
async def test_names(root: Client, sql: "asyncpg.Connection[asyncpg.Record]", bad_name: str) -> None:
    reason = ("TEXT_INVALID" if NUL in bad_name else "NAME_INVALID") if bad_name else "NAME_REQUIRED"
    for rpc, request, field in (
        (root.products.GetProduct, product_service_pb2.GetProductRequest(name=bad_name), "name"),
        (root.products.DeleteProduct, product_service_pb2.DeleteProductRequest(name=bad_name), "name"),
        (root.tenants.ListTenants, tenant_service_pb2.ListTenantsRequest(parent=bad_name), "parent"),
    ):
        await assert_refused(rpc, request, field, reason, sql)


@pytest.mark.parametrize("bad_name", ["", "products/heyoo", f"{TENANT}/", f"{TENANT}/members", f"{TENANT}//x"])
async def test_names_below_a_tenant(root: Client, sql: "asyncpg.Connection[asyncpg.Record]", bad_name: str) -> None:
    reason = "NAME_INVALID" if bad_name else "NAME_REQUIRED"
    for rpc, request in (
        (root.tenants.DeleteTenant, tenant_service_pb2.DeleteTenantRequest(name=bad_name)),
        (root.members.RemoveMember, member_service_pb2.RemoveMemberRequest(name=bad_name)),
        (root.members.GetMember, member_service_pb2.GetMemberRequest(name=bad_name)),
        (root.keys.GetApiKey, api_key_service_pb2.GetApiKeyRequest(name=bad_name)),
        (root.keys.DeleteApiKey, api_key_service_pb2.DeleteApiKeyRequest(name=bad_name)),
        (
            root.machine_users.DeleteMachineUser,
            machine_user_service_pb2.DeleteMachineUserRequest(name=bad_name),
        ),
    ):
        await assert_refused(rpc, request, "name", reason, sql)


async def test_roles_and_display_names(root: Client, tenant: str, sql: "asyncpg.Connection[asyncpg.Record]") -> None:
    assert tenant == TENANT
    for role in ("", "emperor", NUL, "Owner"):
        add = member_service_pb2.AddMemberRequest(
            parent=TENANT, member_id="new", member=member_service_pb2.Member(role=role)
        )
        reason = "TEXT_INVALID" if role == NUL else "ROLE_UNKNOWN"
        await assert_refused(root.members.AddMember, add, "member.role", reason, sql)
    create = tenant_service_pb2.CreateTenantRequest(
        parent="products/heyoo", tenant_id="new", tenant=tenant_service_pb2.Tenant(display_name="a" * 129)
    )
    await assert_refused(root.tenants.CreateTenant, create, "tenant.display_name", "DISPLAY_NAME_TOO_LONG", sql)


async def test_page_tokens(root: Client, tenant: str, sql: "asyncpg.Connection[asyncpg.Record]") -> None:
    assert tenant == TENANT
    for number in range(3):
        await root.add_member(TENANT, f"page-{number}", "member")
        await root.create_key(TENANT, MEMBER, name=f"page {number}")
    people = await root.members.ListPeople(member_service_pb2.ListPeopleRequest(parent=TENANT, page_size=1))
    keys = await root.keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest(parent=TENANT, page_size=1))
    assert people.next_page_token
    assert keys.next_page_token
    other = "products/heyoo/tenants/other"
    bad: list[tuple[Rpc, Message]] = [
        (root.keys.ListApiKeys, api_key_service_pb2.ListApiKeysRequest(parent=TENANT, page_token=token))
        for token in ("x", "!!!", "a" * 5000, people.next_page_token, keys.next_page_token[:-3])
    ]
    bad += [
        (root.members.ListPeople, member_service_pb2.ListPeopleRequest(parent=TENANT, page_token=keys.next_page_token)),
        (
            root.keys.ListApiKeys,
            api_key_service_pb2.ListApiKeysRequest(parent=other, page_token=keys.next_page_token),
        ),
        (
            root.keys.ListApiKeys,
            api_key_service_pb2.ListApiKeysRequest(parent=TENANT, owner=MEMBER, page_token=keys.next_page_token),
        ),
    ]
    for rpc, request in bad:
        await assert_refused(rpc, request, "page_token", "PAGE_TOKEN_INVALID", sql)
    negative = api_key_service_pb2.ListApiKeysRequest(parent=TENANT, page_size=-1)
    await assert_refused(root.keys.ListApiKeys, negative, "page_size", "PAGE_SIZE_NEGATIVE", sql)


async def send_raw(root: Client, method: str, data: bytes) -> Any:
    """Send bytes that are no message."""
    send = root.channel.unary_unary(method, request_serializer=lambda raw: raw, response_deserializer=lambda raw: raw)
    return await send(data, timeout=10)


@pytest.mark.parametrize(
    ("method", "data", "field", "reason"),
    [
        ("CheckService/Check", b"\x12\x02\xff\xfe", "resource", "TEXT_INVALID"),
        ("TenantService/CreateTenant", b"\x1a\x04\x12\x02\xff\xfe", "tenant.display_name", "TEXT_INVALID"),
        ("CheckService/Check", b"\x12\x10ab", None, "REQUEST_MALFORMED"),
        ("CheckService/Check", b"\xff\xff\xff", None, "REQUEST_MALFORMED"),
        ("CheckService/Check", b"\x0a\xc0\x9a\x0c" + b"x" * 200_000, None, "REQUEST_TOO_LARGE"),
    ],
    ids=["text", "nested text", "cut short", "garbage", "large"],
)
async def test_bytes_that_are_no_message(
    root: Client, method: str, data: bytes, field: str | None, reason: str
) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        await send_raw(root, f"/gatekey.v1.{method}", data)
    problem = problem_of(raised.value)
    assert (problem.code, problem.reason) == (INVALID, reason)
    assert problem.fields == ({field: reason} if field else {})


async def test_a_body_beyond_the_transports_limit(root: Client) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        await send_raw(root, "/gatekey.v1.CheckService/Check", b"\x00" * (5 << 20))
    assert problem_of(raised.value).code == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_invalid_spec_is_refused_with_everything_that_is_wrong(
    root: Client, sql: "asyncpg.Connection[asyncpg.Record]", fresh_id: str
) -> None:
    spec = read_example("codeqr")
    spec.product = fresh_id
    spec.secret_keys.prefix = "UPPER"
    spec.roles[0].grants[0].resource = "links//x"
    spec.roles[1].owner = True
    spec.machine_users.role = "robot"
    spec.collections[2].pattern = "domains/*"
    spec.read_actions.append("peek")
    before = await everything(sql)
    with pytest.raises(grpc.RpcError) as raised:
        await root.apply(spec)
    problem = problem_of(raised.value)
    assert problem.reason == "SPEC_INVALID"
    for field, reason in {
        "spec.secret_keys.prefix": "PREFIX_INVALID",
        "spec.roles[0].grants[0].resource": "RESOURCE_INVALID",
        "spec.roles": "OWNER_ROLE_COUNT",
        "spec.machine_users.role": "ROLE_UNKNOWN",
        "spec.collections[2].pattern": "COLLECTION_INVALID",
        "spec.read_actions[1]": "ACTION_UNKNOWN",
    }.items():
        assert problem.fields[field] == reason
    assert await everything(sql) == before


async def test_unknown_enums_in_a_spec(root: Client, fresh_id: str) -> None:
    spec = read_example("codeqr")
    spec.product = fresh_id
    spec.secret_keys.modes.append(77)  # type: ignore[arg-type]
    spec.secret_keys.default_mode = 78  # type: ignore[assignment]
    spec.tenant_noun = "NOUN"
    with pytest.raises(grpc.RpcError) as raised:
        await root.apply(spec)
    assert problem_of(raised.value).fields == {
        "spec.secret_keys.modes[3]": "ENUM_UNKNOWN",
        "spec.secret_keys.default_mode": "ENUM_UNKNOWN",
        "spec.tenant_noun": "NOUN_INVALID",
        # Told with the rest: CodeQR has them.
        "spec.secret_keys.prefix": "PREFIX_TAKEN",
        "spec.publishable_keys.prefix": "PREFIX_TAKEN",
    }
    with pytest.raises(grpc.RpcError) as raised:
        await root.products.ApplyProduct(product_service_pb2.ApplyProductRequest())
    assert problem_of(raised.value).fields == {"spec": "SPEC_REQUIRED"}


async def test_a_spec_with_very_many_problems_still_gets_its_answer(root: Client, fresh_id: str) -> None:
    spec = read_example("codeqr")
    spec.product = fresh_id
    for _ in range(250):
        spec.roles[0].grants.add(resource="no//where" * 110, actions=["?" * 900])
    with pytest.raises(grpc.RpcError) as raised:
        await root.apply(spec)
    assert problem_of(raised.value).reason == "SPEC_INVALID"


async def test_a_page_token_with_a_nul_is_refused(root: Client) -> None:
    lists: list[tuple[Any, Any]] = [
        (root.products.ListProducts, product_service_pb2.ListProductsRequest()),
        (root.tenants.ListTenants, tenant_service_pb2.ListTenantsRequest(parent="products/heyoo")),
        (root.audit.ListAuditEvents, audit_service_pb2.ListAuditEventsRequest(parent="products/heyoo")),
    ]
    for call, request in lists:
        request.page_token = paging.write_token(request, "a\0b")
        with pytest.raises(grpc.RpcError) as raised:
            await call(request, timeout=10)
        problem = problem_of(raised.value)
        assert (problem.code, problem.fields) == (INVALID, {"page_token": "PAGE_TOKEN_INVALID"})
