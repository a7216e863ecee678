"""The same check, byte by byte, asked again and again while things change."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import grpc
import pytest
from gatekey.v1 import api_key_service_pb2, check_service_pb2, member_service_pb2, tenant_service_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support.server import Client, problem_of

TIMES = 4


async def verdicts(client: Client, secret: str) -> set[str]:
    """Ask one by one and in batches, beside another question."""
    check = check_service_pb2.CheckRequest(key=secret, resource="campaigns", action="write")
    other = check_service_pb2.CheckRequest(key="heyoo_x", resource="campaigns", action="write")
    found = {await client.verdict(secret, "campaigns", "write") for _ in range(TIMES)}
    for _ in range(TIMES):
        batch = check_service_pb2.BatchCheckRequest(checks=[check, other, check])
        first, unknown, last = (result.response for result in (await client.checks.BatchCheck(batch)).results)
        assert unknown.reason == unknown.REASON_KEY_UNKNOWN
        found |= {type(each).Reason.Name(each.reason).removeprefix("REASON_") for each in (first, last)}
    return found


def in_seconds(seconds: float) -> Timestamp:
    nanos = int((time.time() + seconds) * 1e9)
    return Timestamp(seconds=nanos // 10**9, nanos=nanos % 10**9)


async def test_every_change_counts_at_once(root: Client, fresh_id: str) -> None:
    tenant = await root.create_tenant("heyoo", fresh_id)
    await root.add_member(tenant, "owner", "owner")
    member = await root.add_member(tenant, "somebody", "member")
    key = await root.create_key(tenant, member)
    name, secret = key.api_key.name, key.secret

    async def role(role: str) -> None:
        changed = member_service_pb2.Member(name=member, role=role)
        mask = FieldMask(paths=["role"])
        await root.members.UpdateMember(member_service_pb2.UpdateMemberRequest(member=changed, update_mask=mask))

    pb, tb = api_key_service_pb2, tenant_service_pb2
    steps: list[tuple[Callable[[], Awaitable[object]], str]] = [
        (lambda: role("viewer"), "OWNER_PERMISSION_MISSING"),
        (lambda: role("member"), "ALLOWED"),
        (lambda: root.keys.DisableApiKey(pb.DisableApiKeyRequest(name=name)), "KEY_DISABLED"),
        (lambda: root.keys.EnableApiKey(pb.EnableApiKeyRequest(name=name)), "ALLOWED"),
        (lambda: root.tenants.SuspendTenant(tb.SuspendTenantRequest(name=tenant)), "TENANT_SUSPENDED"),
        (lambda: root.tenants.ResumeTenant(tb.ResumeTenantRequest(name=tenant)), "ALLOWED"),
        (lambda: root.keys.RevokeApiKey(pb.RevokeApiKeyRequest(name=name)), "KEY_REVOKED"),
        (lambda: root.keys.DeleteApiKey(pb.DeleteApiKeyRequest(name=name)), "KEY_UNKNOWN"),
    ]
    assert await verdicts(root, secret) == {"ALLOWED"}
    for change, expected in steps:
        await change()
        assert await verdicts(root, secret) == {expected}


async def test_an_answer_ends_with_its_key(root: Client, fresh_id: str) -> None:
    tenant = await root.create_tenant("heyoo", fresh_id)
    owner = await root.add_member(tenant, "owner", "owner")
    key = await root.create_key(tenant, owner, expire_time=in_seconds(2))
    assert await verdicts(root, key.secret) == {"ALLOWED"}
    await asyncio.sleep(2.1)
    assert await verdicts(root, key.secret) == {"KEY_EXPIRED"}


async def test_an_answer_ends_with_the_token_that_asks(root: Client, fresh_id: str) -> None:
    tenant = await root.create_tenant("heyoo", fresh_id)
    owner = await root.add_member(tenant, "owner", "owner")
    key = await root.create_key(tenant, owner)
    token = await root.create_key(
        "products/gatekey/tenants/system",
        mode="RESTRICTED",
        grants={"products/heyoo/checks": ["create"]},
        new_machine_user=True,
    )
    client = root.with_token(token.secret)
    try:
        assert await verdicts(client, key.secret) == {"ALLOWED"}
        narrower = api_key_service_pb2.ApiKey(name=token.api_key.name)
        narrower.grants.add(resource="products/bitsy/checks", actions=["create"])
        mask = FieldMask(paths=["grants"])
        await root.keys.UpdateApiKey(api_key_service_pb2.UpdateApiKeyRequest(api_key=narrower, update_mask=mask))
        assert await verdicts(client, key.secret) == {"KEY_UNKNOWN"}
        assert await verdicts(root, key.secret) == {"ALLOWED"}
        await root.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=token.api_key.name))
        for _ in range(TIMES):
            with pytest.raises(grpc.RpcError) as raised:
                await client.check(key.secret, "campaigns", "write")
            assert problem_of(raised.value).reason == "TOKEN_INVALID"
    finally:
        await client.close()


async def test_who_may_not_check_is_not_answered_from_what_another_was_told(root: Client, fresh_id: str) -> None:
    tenant = await root.create_tenant("heyoo", fresh_id)
    owner = await root.add_member(tenant, "owner", "owner")
    key = await root.create_key(tenant, owner)
    narrow = root.with_token(await root.create_token({"products/bitsy/checks": ["create"]}))
    nobody = root.with_token(None)
    try:
        assert await verdicts(root, key.secret) == {"ALLOWED"}
        assert await verdicts(narrow, key.secret) == {"KEY_UNKNOWN"}
        assert await verdicts(root, key.secret) == {"ALLOWED"}
        with pytest.raises(grpc.RpcError) as raised:
            await nobody.check(key.secret, "campaigns", "write")
        assert problem_of(raised.value).reason == "TOKEN_MISSING"
    finally:
        await narrow.close()
        await nobody.close()
