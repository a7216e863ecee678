"""The lives of keys, tenants, members and machine users after their creation."""

import asyncio
from typing import Any

import asyncpg
import grpc
import pytest
from gatekey.core.secrets import new_secret
from gatekey.v1 import (
    api_key_service_pb2,
    machine_user_service_pb2,
    member_service_pb2,
    tenant_service_pb2,
    types_pb2,
)
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from tests.acceptance.test_products import own_spec
from tests.support.server import Client, problem_of

ALLOWED, UNKNOWN = "ALLOWED", "KEY_UNKNOWN"


async def refused(attempt: Any) -> str:
    """The reason for which a call is refused."""
    with pytest.raises(grpc.RpcError) as raised:
        await attempt
    return problem_of(raised.value).reason


async def heyoo(root: Client, tenant_id: str) -> tuple[str, str]:
    """A tenant of Heyoo and its owner."""
    tenant = await root.create_tenant("heyoo", tenant_id)
    return tenant, await root.add_member(tenant, "owner", "owner")


async def rotate(
    root: Client, name: str, grace_s: float = 0, **fields: Any
) -> api_key_service_pb2.RotateApiKeyResponse:
    """Rotate a key."""
    request = api_key_service_pb2.RotateApiKeyRequest(name=name, **fields)
    if grace_s:
        request.grace.FromMilliseconds(int(grace_s * 1000))
    answer: api_key_service_pb2.RotateApiKeyResponse = await root.keys.RotateApiKey(request)
    return answer


async def update_key(root: Client, name: str, *paths: str, etag: str = "", **fields: Any) -> api_key_service_pb2.ApiKey:
    """Update the fields that `paths` name."""
    request = api_key_service_pb2.UpdateApiKeyRequest(
        api_key=api_key_service_pb2.ApiKey(name=name, etag=etag, **fields), update_mask=FieldMask(paths=paths)
    )
    key: api_key_service_pb2.ApiKey = await root.keys.UpdateApiKey(request)
    return key


async def test_f5_a_regenerated_key_is_the_same_key_with_a_new_secret(root: Client, fresh_id: str) -> None:
    tenant = await root.create_tenant("formbox", fresh_id)
    old = await root.create_key(tenant, mode="READ_ONLY", name="Lost")
    new = await rotate(root, old.api_key.name)
    assert new.api_key.name == old.api_key.name
    assert new.secret.startswith("fbsk_")
    assert await root.verdict(old.secret, "forms", "read") == UNKNOWN
    assert await root.verdict(new.secret, "forms", "read") == ALLOWED
    assert await root.verdict(new.secret, "forms", "write") == "KEY_PERMISSION_MISSING"
    read = await root.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=old.api_key.name))
    assert [secret.hint for secret in read.secrets] == [new.secret[:9]]


async def test_t1_a_changed_role_counts_at_the_next_check(root: Client, fresh_id: str) -> None:
    tenant = await root.create_tenant("tally", fresh_id)
    await root.add_member(tenant, "admin", "admin")
    member = await root.add_member(tenant, "m", "guest")
    key = (await root.create_key(tenant, member)).secret
    for role, verdict in (("member", ALLOWED), ("guest", "OWNER_PERMISSION_MISSING"), ("admin", ALLOWED)):
        request = member_service_pb2.UpdateMemberRequest(
            member=member_service_pb2.Member(name=member, role=role), update_mask=FieldMask(paths=["role"])
        )
        updated = await root.members.UpdateMember(request)
        assert updated.role == role
        assert await root.verdict(key, "forms/a", "write") == verdict
        assert (await root.check(key, "forms/a", "write")).role == role


async def test_a_rotated_secret_lives_for_the_grace_and_no_longer(root: Client, fresh_id: str) -> None:
    tenant, owner = await heyoo(root, fresh_id)
    first = await root.create_key(tenant, owner)
    second = await rotate(root, first.api_key.name, grace_s=1)
    assert len(second.api_key.secrets) == 2
    assert await root.verdict(first.secret, "tags", "read") == ALLOWED
    assert await root.verdict(second.secret, "tags", "read") == ALLOWED
    answer = await root.check(first.secret, "tags", "read")
    assert answer.HasField("expire_time")
    await asyncio.sleep(1.1)
    assert await root.verdict(first.secret, "tags", "read") == "KEY_EXPIRED"
    assert await root.verdict(second.secret, "tags", "read") == ALLOWED


async def test_a_third_secret_ends_the_first_at_once(root: Client, fresh_id: str) -> None:
    tenant, owner = await heyoo(root, fresh_id)
    created = await root.create_key(tenant, owner)
    second = await rotate(root, created.api_key.name, grace_s=3600)
    third = await rotate(root, created.api_key.name, grace_s=3600)
    verdicts = [await root.verdict(s, "tags", "read") for s in (created.secret, second.secret, third.secret)]
    assert verdicts == [UNKNOWN, ALLOWED, ALLOWED]
    assert len(third.api_key.secrets) == 2


async def test_a_rotation_never_lengthens_a_life(root: Client, fresh_id: str) -> None:
    tenant, owner = await heyoo(root, fresh_id)
    expires = Timestamp()
    expires.GetCurrentTime()
    expires.seconds += 2
    created = await root.create_key(tenant, owner, expire_time=expires)
    second = await rotate(root, created.api_key.name, grace_s=3600)
    assert second.api_key.expire_time == expires
    third = await rotate(root, created.api_key.name, grace_s=1)
    fourth_would = third.api_key.secrets[1].expire_time.ToMilliseconds()
    assert fourth_would <= expires.ToMilliseconds()
    await asyncio.sleep(2.1)
    for secret in (second.secret, third.secret):
        assert await root.verdict(secret, "tags", "read") in {"KEY_EXPIRED", UNKNOWN}
    assert await refused(rotate(root, created.api_key.name)) == "API_KEY_EXPIRED"


@pytest.mark.parametrize(
    ("grace", "reason"),
    [(Duration(seconds=-1), "GRACE_INVALID"), (Duration(seconds=31 * 86400), "GRACE_INVALID")],
    ids=str,
)
async def test_a_grace_has_bounds(root: Client, fresh_id: str, grace: Duration, reason: str) -> None:
    tenant, owner = await heyoo(root, fresh_id)
    created = await root.create_key(tenant, owner)
    request = api_key_service_pb2.RotateApiKeyRequest(name=created.api_key.name, grace=grace)
    assert await refused(root.keys.RotateApiKey(request)) == reason
    assert await root.verdict(created.secret, "tags", "read") == ALLOWED


async def test_a_key_is_disabled_and_enabled(root: Client, fresh_id: str) -> None:
    tenant, owner = await heyoo(root, fresh_id)
    created = await root.create_key(tenant, owner)
    name = created.api_key.name
    for _ in range(2):
        key = await root.keys.DisableApiKey(api_key_service_pb2.DisableApiKeyRequest(name=name))
        assert key.state == key.STATE_DISABLED
        assert await root.verdict(created.secret, "tags", "read") == "KEY_DISABLED"
    for _ in range(2):
        key = await root.keys.EnableApiKey(api_key_service_pb2.EnableApiKeyRequest(name=name))
        assert key.state == key.STATE_ACTIVE
        assert await root.verdict(created.secret, "tags", "read") == ALLOWED


async def test_a_revocation_is_for_good(root: Client, fresh_id: str) -> None:
    tenant, owner = await heyoo(root, fresh_id)
    created = await root.create_key(tenant, owner)
    name = created.api_key.name
    key = await root.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=name, reason="Found on a forum"))
    assert (key.state, key.revoke_reason) == (key.STATE_REVOKED, "Found on a forum")
    assert await root.verdict(created.secret, "tags", "read") == "KEY_REVOKED"
    again = await root.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=name, reason="Another"))
    assert again == key
    await root.keys.EnableApiKey(api_key_service_pb2.EnableApiKeyRequest(name=name))
    assert await root.verdict(created.secret, "tags", "read") == "KEY_REVOKED"
    assert await refused(rotate(root, name)) == "API_KEY_REVOKED"
    assert await refused(update_key(root, name, "display_name", display_name="New")) == "API_KEY_REVOKED"


async def test_a_publishable_key_of_a_product_that_has_none_any_more_is_not_rotated(
    root: Client, fresh_id: str
) -> None:
    spec = own_spec(fresh_id)
    await root.apply(spec)
    created = await root.create_key(await root.create_tenant(fresh_id, "acme"), kind="PUBLISHABLE")
    without = own_spec(fresh_id)
    without.ClearField("publishable_keys")
    await root.apply(without, force=True)
    assert await refused(rotate(root, created.api_key.name)) == "PUBLISHABLE_KEYS_NOT_OFFERED"
    await root.apply(spec)
    rotated = await rotate(root, created.api_key.name)
    assert await root.verdict(rotated.secret, "events", "track") == ALLOWED
    assert await root.verdict(created.secret, "events", "track") == UNKNOWN


async def test_only_the_fields_in_the_mask_change(root: Client, fresh_id: str) -> None:
    tenant, owner = await heyoo(root, fresh_id)
    created = await root.create_key(
        tenant, owner, mode="RESTRICTED", grants={"tags": ["read"]}, description="Old", labels={"team": "a"}
    )
    name = created.api_key.name
    changed = await update_key(
        root, name, "description", "labels", description="New", labels={"team": "b"}, display_name="Ignored"
    )
    assert (changed.display_name, changed.description, dict(changed.labels)) == ("Key", "New", {"team": "b"})
    assert changed.grants == created.api_key.grants
    assert changed.etag != created.api_key.etag
    assert await update_key(root, name, "description", description="New") == changed


async def test_changed_grants_count_at_the_next_check(root: Client, fresh_id: str) -> None:
    tenant, owner = await heyoo(root, fresh_id)
    created = await root.create_key(tenant, owner, mode="RESTRICTED", grants={"tags": ["read"]})
    name = created.api_key.name
    grants = [types_pb2.Grant(resource="domains", actions=["read", "write"])]
    await update_key(root, name, "grants", grants=grants)
    assert await root.verdict(created.secret, "tags", "read") == "KEY_PERMISSION_MISSING"
    assert await root.verdict(created.secret, "domains/a", "write") == ALLOWED
    changed = await update_key(root, name, "mode", mode=types_pb2.ACCESS_MODE_READ_ONLY)
    assert not changed.grants
    assert await root.verdict(created.secret, "tags", "read") == ALLOWED
    assert await root.verdict(created.secret, "domains/a", "write") == "KEY_PERMISSION_MISSING"
    assert await refused(update_key(root, name, "mode", mode=types_pb2.ACCESS_MODE_RESTRICTED)) == "GRANTS_REQUIRED"
    assert await refused(update_key(root, name, "grants", grants=grants)) == "GRANTS_NOT_ALLOWED"
    too_much = [types_pb2.Grant(resource="people", actions=["read"])]
    both = update_key(root, name, "mode", "grants", mode=types_pb2.ACCESS_MODE_RESTRICTED, grants=too_much)
    assert await refused(both) == "GRANTS_NOT_OFFERED"


async def test_an_expiry_is_set_moved_and_taken_away(root: Client, fresh_id: str) -> None:
    tenant, owner = await heyoo(root, fresh_id)
    request = api_key_service_pb2.CreateApiKeyRequest(
        parent=tenant,
        api_key=api_key_service_pb2.ApiKey(display_name="Key", owner=owner, mode=types_pb2.ACCESS_MODE_ALL),
        ttl=Duration(seconds=3600),
    )
    created = await root.keys.CreateApiKey(request)
    assert 3590 < created.api_key.expire_time.seconds - created.api_key.create_time.seconds <= 3601
    name = created.api_key.name
    past = Timestamp(seconds=1_000_000_000)
    assert await refused(update_key(root, name, "expire_time", expire_time=past)) == "EXPIRE_TIME_PAST"
    soon = Timestamp()
    soon.GetCurrentTime()
    soon.FromMilliseconds(soon.ToMilliseconds() + 700)
    await update_key(root, name, "expire_time", expire_time=soon)
    assert await root.verdict(created.secret, "tags", "read") == ALLOWED
    await asyncio.sleep(0.8)
    assert await root.verdict(created.secret, "tags", "read") == "KEY_EXPIRED"
    assert not (await update_key(root, name, "expire_time")).HasField("expire_time")
    assert await root.verdict(created.secret, "tags", "read") == ALLOWED
    for ttl in (Duration(seconds=0), Duration(seconds=-5)):
        request.ttl.CopyFrom(ttl)
        assert await refused(root.keys.CreateApiKey(request)) == "TTL_INVALID"
    request.api_key.expire_time.CopyFrom(soon)
    assert await refused(root.keys.CreateApiKey(request)) == "TTL_NOT_ALLOWED"


async def test_a_key_has_no_more_than_its_owner(root: Client, fresh_id: str) -> None:
    tenant, _ = await heyoo(root, fresh_id)
    member = await root.add_member(tenant, "m", "member")
    grants = {"apiKeys": ["write"]}
    assert await refused(root.create_key(tenant, member, mode="RESTRICTED", grants=grants)) == "GRANTS_EXCEED_OWNER"
    created = await root.create_key(tenant, member, mode="RESTRICTED", grants={"tags": ["read"]})
    more = [types_pb2.Grant(resource="apiKeys", actions=["write"])]
    assert await refused(update_key(root, created.api_key.name, "grants", grants=more)) == "GRANTS_EXCEED_OWNER"


async def test_whose_secret_is_this(root: Client, fresh_id: str) -> None:
    tenant, owner = await heyoo(root, fresh_id)
    created = await root.create_key(tenant, owner)

    async def identify(client: Client, secret: str) -> api_key_service_pb2.ApiKey:
        request = api_key_service_pb2.IdentifySecretRequest(secret=secret)
        return await client.keys.IdentifySecret(request)

    assert await identify(root, created.secret) == created.api_key
    await root.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=created.api_key.name))
    assert (await identify(root, created.secret)).state == api_key_service_pb2.ApiKey.STATE_REVOKED
    assert await refused(identify(root, new_secret("hey_"))) == "SECRET_NOT_FOUND"
    assert await refused(identify(root, "nonsense")) == "SECRET_NOT_FOUND"
    assert await refused(identify(root, "")) == "SECRET_REQUIRED"
    narrow = root.with_token(await root.create_token({"products/heyoo/tenants/other": ["*"]}))
    assert await refused(identify(narrow, created.secret)) == "SECRET_NOT_FOUND"
    await narrow.close()


async def test_a_tenant_is_suspended_resumed_deleted_and_undeleted(root: Client, fresh_id: str) -> None:
    tenant, owner = await heyoo(root, fresh_id)
    secret = (await root.create_key(tenant, owner)).secret
    suspended = await root.tenants.SuspendTenant(tenant_service_pb2.SuspendTenantRequest(name=tenant))
    assert suspended.state == suspended.STATE_SUSPENDED
    assert await root.verdict(secret, "tags", "read") == "TENANT_SUSPENDED"
    again = await root.tenants.SuspendTenant(tenant_service_pb2.SuspendTenantRequest(name=tenant))
    assert again == suspended
    deleted = await root.tenants.DeleteTenant(tenant_service_pb2.DeleteTenantRequest(name=tenant))
    assert (deleted.deleted.tenants, deleted.deleted.members, deleted.deleted.api_keys) == (1, 1, 1)
    retention_s = deleted.tenant.purge_time.seconds - deleted.tenant.delete_time.seconds
    assert retention_s == 30 * 86400
    assert await root.verdict(secret, "tags", "read") == "TENANT_SUSPENDED"
    restored = await root.tenants.UndeleteTenant(tenant_service_pb2.UndeleteTenantRequest(name=tenant))
    assert restored.state == restored.STATE_SUSPENDED
    assert not restored.HasField("purge_time")
    resumed = await root.tenants.ResumeTenant(tenant_service_pb2.ResumeTenantRequest(name=tenant))
    assert resumed.state == resumed.STATE_ACTIVE
    assert await root.verdict(secret, "tags", "read") == ALLOWED
    undelete = root.tenants.UndeleteTenant(tenant_service_pb2.UndeleteTenantRequest(name=tenant))
    assert await refused(undelete) == "TENANT_NOT_DELETED"


async def test_a_tenant_and_a_machine_user_get_other_names(root: Client, fresh_id: str) -> None:
    tenant, _ = await heyoo(root, fresh_id)
    request = tenant_service_pb2.UpdateTenantRequest(
        tenant=tenant_service_pb2.Tenant(name=tenant, display_name="New"), update_mask=FieldMask(paths=["*"])
    )
    assert (await root.tenants.UpdateTenant(request)).display_name == "New"
    user = (await root.create_key(tenant, new_machine_user=True)).machine_user
    rename = machine_user_service_pb2.UpdateMachineUserRequest(
        machine_user=machine_user_service_pb2.MachineUser(name=user.name, display_name="Bot"),
        update_mask=FieldMask(paths=["display_name"]),
    )
    assert (await root.machine_users.UpdateMachineUser(rename)).display_name == "Bot"
    rename.update_mask.paths[:] = ["role"]
    assert await refused(root.machine_users.UpdateMachineUser(rename)) == "UPDATE_MASK_INVALID"
    rename.ClearField("update_mask")
    assert await refused(root.machine_users.UpdateMachineUser(rename)) == "UPDATE_MASK_REQUIRED"


async def test_the_last_owner_stays_unless_forced(root: Client, fresh_id: str) -> None:
    tenant, first = await heyoo(root, fresh_id)
    second = await root.add_member(tenant, "second", "owner")
    demote = member_service_pb2.UpdateMemberRequest(
        member=member_service_pb2.Member(name=second, role="viewer"), update_mask=FieldMask(paths=["role"])
    )
    await root.members.UpdateMember(demote)
    demote.member.name = first
    assert await refused(root.members.UpdateMember(demote)) == "LAST_OWNER"
    remove = member_service_pb2.RemoveMemberRequest(name=first)
    assert await refused(root.members.RemoveMember(remove)) == "LAST_OWNER"
    remove.force = True
    assert (await root.members.RemoveMember(remove)).deleted.members == 1


async def test_what_a_tenant_can_hold(root: Client, fresh_id: str) -> None:
    spec = own_spec(fresh_id)
    spec.limits.members, spec.limits.machine_users, spec.limits.api_keys = 2, 1, 3
    await root.apply(spec)
    tenant = await root.create_tenant(fresh_id, "acme")
    owner = await root.add_member(tenant, "one", "owner")
    await root.add_member(tenant, "two", "member")
    assert await refused(root.add_member(tenant, "three", "member")) == "LIMIT_REACHED"
    await root.create_key(tenant, new_machine_user=True)
    assert await refused(root.create_key(tenant, new_machine_user=True)) == "LIMIT_REACHED"
    created = [await root.create_key(tenant, owner) for _ in range(2)]
    assert await refused(root.create_key(tenant, kind="PUBLISHABLE")) == "LIMIT_REACHED"
    await root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=created[0].api_key.name))
    await root.create_key(tenant, kind="PUBLISHABLE")


async def test_a_stale_etag_changes_nothing(root: Client, fresh_id: str) -> None:
    tenant, owner = await heyoo(root, fresh_id)
    created = await root.create_key(tenant, owner)
    name, stale = created.api_key.name, created.api_key.etag
    fresh = (await update_key(root, name, "display_name", display_name="New", etag=stale)).etag
    for attempt in (
        update_key(root, name, "display_name", display_name="Other", etag=stale),
        rotate(root, name, etag=stale),
        root.keys.DisableApiKey(api_key_service_pb2.DisableApiKeyRequest(name=name, etag=stale)),
        root.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=name, etag=stale)),
        root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=name, etag=stale)),
        root.tenants.SuspendTenant(tenant_service_pb2.SuspendTenantRequest(name=tenant, etag=stale)),
        root.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=owner, etag=stale)),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            await attempt
        assert problem_of(raised.value).code == grpc.StatusCode.ABORTED
        assert problem_of(raised.value).reason == "ETAG_MISMATCH"
    assert await root.verdict(created.secret, "tags", "read") == ALLOWED
    await rotate(root, name, etag=fresh)


async def test_validate_only_tells_and_changes_nothing(
    root: Client, fresh_id: str, sql: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    tenant, owner = await heyoo(root, fresh_id)
    second = await root.add_member(tenant, "second", "owner")
    created = await root.create_key(tenant, second)
    events = await sql.fetchval("select count(*) from audit_event where tenant_id = $1", fresh_id)

    removed = await root.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=second, validate_only=True))
    assert (removed.deleted.members, removed.deleted.api_keys) == (1, 1)
    rotated = await rotate(root, created.api_key.name, validate_only=True)
    assert (rotated.secret, rotated.secret_withheld) == ("", True)
    new = await root.keys.CreateApiKey(
        api_key_service_pb2.CreateApiKeyRequest(
            parent=tenant,
            api_key=api_key_service_pb2.ApiKey(display_name="Key", owner=owner, mode=types_pb2.ACCESS_MODE_ALL),
            validate_only=True,
        )
    )
    assert (new.secret, new.secret_withheld) == ("", True)
    gone = await root.tenants.DeleteTenant(tenant_service_pb2.DeleteTenantRequest(name=tenant, validate_only=True))
    assert (gone.deleted.members, gone.deleted.api_keys) == (2, 1)
    invalid = root.members.RemoveMember(
        member_service_pb2.RemoveMemberRequest(name=f"{tenant}/members/none", validate_only=True)
    )
    assert await refused(invalid) == "MEMBER_NOT_FOUND"

    assert await root.verdict(created.secret, "tags", "read") == ALLOWED
    listed = await root.keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest(parent=tenant))
    assert [key.name for key in listed.api_keys] == [created.api_key.name]
    assert await sql.fetchval("select count(*) from audit_event where tenant_id = $1", fresh_id) == events
