"""Who made a key, and whose a secret is or was: after a rotation, a deletion, and the removal of its owner."""

from datetime import UTC, datetime, timedelta

import grpc
import pytest
from gatekey.v1 import (
    api_key_service_pb2,
    machine_user_service_pb2,
    member_service_pb2,
    product_service_pb2,
    tenant_service_pb2,
    types_pb2,
)
from gatekey_server.store.queries import queries
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from tests.acceptance.test_audit import events
from tests.acceptance.test_products import own_spec
from tests.support.databases import Sql
from tests.support.server import Client, as_json, problem_of

SYSTEM = "products/gatekey/tenants/system"
ApiKey = api_key_service_pb2.ApiKey


async def identify(client: Client, secret: str) -> api_key_service_pb2.ApiKey:
    """Whose a secret is."""
    request = api_key_service_pb2.IdentifySecretRequest(secret=secret)
    return await client.keys.IdentifySecret(request)


async def rotate(client: Client, name: str, grace_s: int = 0) -> str:
    """Give a key a new secret; answers it."""
    request = api_key_service_pb2.RotateApiKeyRequest(name=name, grace=Duration(seconds=grace_s))
    return (await client.keys.RotateApiKey(request)).secret


@pytest.fixture
async def tenant(root: Client, fresh_id: str) -> str:
    """A tenant of Heyoo with an owner."""
    name = await root.create_tenant("heyoo", fresh_id)
    await root.add_member(name, "owner", "owner")
    return name


async def test_a_secret_that_was_rotated_away_is_still_identified(root: Client, tenant: str) -> None:
    created = await root.create_key(tenant, f"{tenant}/members/owner")
    name = created.api_key.name
    assert not (await identify(root, created.secret)).HasField("identified")
    before = datetime.now(UTC)
    second = await rotate(root, name)
    found = await identify(root, created.secret)
    assert (found.name, found.state) == (name, ApiKey.STATE_ACTIVE)
    assert found.identified.hint == created.api_key.secrets[0].hint
    assert found.identified.create_time == created.api_key.secrets[0].create_time
    assert abs(found.identified.expire_time.ToDatetime(tzinfo=UTC) - before) < timedelta(seconds=10)
    assert await root.verdict(created.secret, "tags", "read") == "KEY_UNKNOWN"
    # In its grace, it works until then; the one before is still known, too.
    third = await rotate(root, name, grace_s=3600)
    assert (await identify(root, second)).identified.expire_time.ToDatetime(tzinfo=UTC) > datetime.now(UTC)
    assert (await identify(root, created.secret)).name == name
    assert not (await identify(root, third)).HasField("identified")


async def test_a_secret_of_a_key_that_is_gone_is_still_identified(root: Client, tenant: str) -> None:
    created = await root.create_key(tenant, f"{tenant}/members/owner")
    await rotate(root, created.api_key.name)
    await root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=created.api_key.name))
    found = await identify(root, created.secret)
    assert (found.name, found.state) == (created.api_key.name, ApiKey.STATE_DELETED)
    assert found.identified.hint == created.api_key.secrets[0].hint
    assert found.identified.HasField("expire_time")
    assert await root.verdict(created.secret, "tags", "read") == "KEY_UNKNOWN"


async def test_a_secret_of_an_owner_that_was_removed_is_still_identified(root: Client, tenant: str) -> None:
    member = await root.add_member(tenant, "leaver", "owner")
    of_member = await root.create_key(tenant, member)
    of_machine = await root.create_key(tenant, new_machine_user=True)
    await root.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=member))
    await root.machine_users.DeleteMachineUser(
        machine_user_service_pb2.DeleteMachineUserRequest(name=of_machine.machine_user.name)
    )
    for created in (of_member, of_machine):
        found = await identify(root, created.secret)
        assert (found.name, found.state) == (created.api_key.name, ApiKey.STATE_DELETED)
        assert await root.verdict(created.secret, "tags", "read") == "KEY_UNKNOWN"


async def test_past_secrets_are_identified_only_with_the_permission(root: Client, tenant: str) -> None:
    created = await root.create_key(tenant, f"{tenant}/members/owner")
    await root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=created.api_key.name))
    other = root.with_token(await root.create_token({"products/heyoo/tenants/other": ["*"]}))
    with pytest.raises(grpc.RpcError) as raised:
        await identify(other, created.secret)
    assert problem_of(raised.value).reason == "SECRET_NOT_FOUND"
    await other.close()


def test_no_check_reads_past_secrets() -> None:
    """They are for identification alone: no other query may find a digest in them."""
    named = {name for name in queries.available_queries if "past_secret" in getattr(queries, name).sql}
    assert {name.removesuffix("_cursor") for name in named} == {"secret_locate", "past_secret_purge"}


async def test_a_key_tells_who_made_it(root: Client, tenant: str) -> None:
    maker = await root.create_key(SYSTEM, grants={tenant: ["*"]}, new_machine_user=True, name="console")
    client = root.with_token(maker.secret)
    owner = f"{tenant}/members/owner"
    by_itself = await client.create_key(tenant, owner)
    request = api_key_service_pb2.CreateApiKeyRequest(
        parent=tenant,
        api_key=ApiKey(
            display_name="Key", owner=owner, mode=types_pb2.ACCESS_MODE_ALL, creator=ApiKey.Creator(actor="made up")
        ),
    )
    for_owner = await client.keys.CreateApiKey(request, metadata=(("gatekey-actor", owner),))
    await client.close()
    await root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=maker.api_key.name))
    creator = ApiKey.Creator(caller=maker.api_key.name, caller_display_name="console")
    listed = await root.keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest(parent=tenant))
    assert [key.creator.actor for key in listed.api_keys] == ["", owner]
    for created, actor in ((by_itself, ""), (for_owner, owner)):
        creator.actor = actor
        key = await root.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=created.api_key.name))
        assert key.creator == created.api_key.creator == creator
        assert key in listed.api_keys
    made = await events(root, tenant, verb="CreateApiKey")
    assert [as_json(event.after)["creator"]["actor"] for event in made] == ["", owner]


async def test_deletions_tell_how_much_went_along(root: Client, fresh_id: str) -> None:
    await root.apply(own_spec(fresh_id))
    one, two = [await root.create_tenant(fresh_id, id_) for id_ in ("one", "two")]
    for tenant in (one, two):
        owner = await root.add_member(tenant, "owner", "owner")
        await root.create_key(tenant, owner)
    await root.create_key(two, new_machine_user=True)
    await root.tenants.DeleteTenant(tenant_service_pb2.DeleteTenantRequest(name=two))
    (deleted,) = await events(root, two, verb="DeleteTenant")
    assert as_json(deleted.before)["contents"] == {"tenants": 1, "members": 1, "machine_users": 1, "api_keys": 2}
    await root.products.DeleteProduct(product_service_pb2.DeleteProductRequest(name=f"products/{fresh_id}", force=True))
    (deleted,) = await events(root, f"products/{fresh_id}", verb="DeleteProduct")
    assert as_json(deleted.before)["contents"] == {"tenants": 2, "members": 2, "machine_users": 1, "api_keys": 3}


async def test_removals_name_the_keys_that_went_along(root: Client, tenant: str) -> None:
    member = await root.add_member(tenant, "leaver", "owner")
    of_member = [(await root.create_key(tenant, member)).api_key.name for _ in range(2)]
    await root.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=member))
    machine = await root.create_key(tenant, new_machine_user=True)
    user = machine.machine_user.name
    await root.machine_users.DeleteMachineUser(machine_user_service_pb2.DeleteMachineUserRequest(name=user))
    for target, keys in ((member, of_member), (user, [machine.api_key.name])):
        removed = as_json((await events(root, tenant, target=target))[-1].before)
        assert removed["api_key_count"] == len(keys)
        assert removed["api_keys"] == [key.rpartition("/")[2] for key in keys]


async def test_events_tell_what_people_call_the_token(root: Client, tenant: str, sql: Sql) -> None:
    token = await root.create_key(SYSTEM, grants={tenant: ["*"]}, new_machine_user=True, name="console")
    client = root.with_token(token.secret)
    await client.add_member(tenant, "one", "member")
    await client.close()
    (event,) = await events(root, tenant, target=f"{tenant}/members/one")
    assert (event.caller, event.caller_display_name) == (token.api_key.name, "console")
    assert await sql.fetchval("select caller_display_name from audit_event where hash = $1", event.hash) == "console"


async def test_only_keys_that_may_work_count_towards_the_limit(root: Client, fresh_id: str, sql: Sql) -> None:
    spec = own_spec(fresh_id)
    spec.limits.api_keys, spec.tenant_noun = 2, "merchant"
    await root.apply(spec)
    tenant = await root.create_tenant(fresh_id, "acme")
    owner = await root.add_member(tenant, "one", "owner")

    async def is_full() -> bool:
        try:
            created = await root.create_key(tenant, owner)
        except grpc.RpcError as error:
            problem = problem_of(error)
            assert (problem.reason, problem.metadata) == ("LIMIT_REACHED", {"limit": "2", "of": "api_keys"})
            assert problem.message == "the merchant has reached its limit of API keys: 2"
            return True
        await root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=created.api_key.name))
        return False

    later = datetime.now(UTC) + timedelta(hours=1)
    first = (await root.create_key(tenant, owner)).api_key.name
    second = (await root.create_key(tenant, owner, expire_time=later)).api_key.name
    assert await is_full()
    await root.keys.DisableApiKey(api_key_service_pb2.DisableApiKeyRequest(name=first))
    assert await is_full(), "it can be enabled again"
    await root.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=first))
    assert not await is_full()
    await root.create_key(tenant, owner)
    assert await is_full()
    await sql.execute("update api_key set expire_time = now() where expire_time = $1", later)
    third = await root.create_key(tenant, owner)
    # An expired key that gets more time needs a place again.
    longer = api_key_service_pb2.UpdateApiKeyRequest(
        api_key=ApiKey(name=second), update_mask=FieldMask(paths=["expire_time"])
    )
    longer.api_key.expire_time.FromDatetime(later)
    with pytest.raises(grpc.RpcError) as raised:
        await root.keys.UpdateApiKey(longer)
    assert problem_of(raised.value).reason == "LIMIT_REACHED"
    await root.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=third.api_key.name))
    await root.keys.UpdateApiKey(longer)
    assert await is_full()
