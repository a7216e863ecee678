"""On whose behalf: what a mutation may do when it names an actor."""

from typing import Any

import grpc
import pytest
from gatekey.v1 import api_key_service_pb2, member_service_pb2, tenant_service_pb2, types_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from tests.support.server import Client, Rpc, problem_of


async def refused(attempt: Any) -> str:
    """The reason for which a call is refused."""
    with pytest.raises(grpc.RpcError) as raised:
        await attempt
    return problem_of(raised.value).reason


def acting(name: str) -> dict[str, Any]:
    """Call options that name an actor."""
    return {"metadata": (("gatekey-actor", name),), "timeout": 10}


def new_key(tenant: str, owner: str = "", **fields: Any) -> api_key_service_pb2.CreateApiKeyRequest:
    """A creation; without an owner, of a machine user as well."""
    fields.setdefault("mode", types_pb2.ACCESS_MODE_ALL)
    key = api_key_service_pb2.ApiKey(display_name="Key", owner=owner, **fields)
    request = api_key_service_pb2.CreateApiKeyRequest(parent=tenant, api_key=key)
    if not owner:
        request.new_machine_user.SetInParent()
    return request


async def people(root: Client, tenant_id: str) -> tuple[str, str, str, str]:
    """A tenant of Heyoo with an owner, a member and a viewer."""
    tenant = await root.create_tenant("heyoo", tenant_id)
    owner, member, viewer = [await root.add_member(tenant, role, role) for role in ("owner", "member", "viewer")]
    return tenant, owner, member, viewer


async def test_h7_only_an_owner_creates_machine_users(root: Client, fresh_id: str) -> None:
    tenant, owner, member, viewer = await people(root, fresh_id)
    for actor in (member, viewer):
        attempt = root.keys.CreateApiKey(new_key(tenant), **acting(actor))
        assert await refused(attempt) == "ACTOR_PERMISSION_MISSING"
    listed = await root.members.ListPeople(member_service_pb2.ListPeopleRequest(parent=tenant))
    assert not [person for person in listed.people if person.HasField("machine_user")]
    created = await root.keys.CreateApiKey(new_key(tenant), **acting(owner))
    assert created.machine_user.name


async def test_everyone_manages_their_own_keys_as_their_role_says(root: Client, fresh_id: str) -> None:
    tenant, owner, member, viewer = await people(root, fresh_id)
    mine = await root.keys.CreateApiKey(new_key(tenant, member), **acting(member))
    owners = await root.keys.CreateApiKey(new_key(tenant, owner), **acting(owner))
    assert await refused(root.keys.CreateApiKey(new_key(tenant, owner), **acting(member))) == (
        "ACTOR_PERMISSION_MISSING"
    )
    assert await refused(root.keys.CreateApiKey(new_key(tenant, viewer), **acting(viewer))) == (
        "ACTOR_PERMISSION_MISSING"
    )
    rotate = api_key_service_pb2.RotateApiKeyRequest(name=owners.api_key.name)
    assert await refused(root.keys.RotateApiKey(rotate, **acting(member))) == "ACTOR_PERMISSION_MISSING"
    rotate.name = mine.api_key.name
    assert (await root.keys.RotateApiKey(rotate, **acting(member))).secret
    delete = api_key_service_pb2.DeleteApiKeyRequest(name=mine.api_key.name)
    assert await refused(root.keys.DeleteApiKey(delete, **acting(viewer))) == "ACTOR_PERMISSION_MISSING"
    await root.keys.DeleteApiKey(delete, **acting(owner))


async def test_who_may_not_see_a_key_is_not_told_whether_it_exists(root: Client, fresh_id: str) -> None:
    tenant, _, _, viewer = await people(root, fresh_id)
    delete = api_key_service_pb2.DeleteApiKeyRequest(name=f"{tenant}/apiKeys/key_00000000000000000000000000")
    assert await refused(root.keys.DeleteApiKey(delete, **acting(viewer))) == "ACTOR_PERMISSION_MISSING"


async def test_actors_must_be_of_the_tenant(root: Client, fresh_id: str) -> None:
    tenant, owner, _, _ = await people(root, fresh_id)
    _, foreign, _, _ = await people(root, f"{fresh_id}x")
    request = new_key(tenant, owner)
    for actor, reason in (
        (foreign, "ACTOR_OF_OTHER_TENANT"),
        (f"{tenant}/members/none", "ACTOR_UNKNOWN"),
        ("nonsense", "NAME_INVALID"),
        ("", "NAME_REQUIRED"),
    ):
        assert await refused(root.keys.CreateApiKey(request, **acting(actor))) == reason
    two: dict[str, Any] = {"metadata": (("gatekey-actor", owner), ("gatekey-actor", owner)), "timeout": 10}
    assert await refused(root.keys.CreateApiKey(request, **two)) == "NAME_INVALID"
    create = tenant_service_pb2.CreateTenantRequest(parent="products/heyoo", tenant_id=f"{fresh_id}y")
    assert await refused(root.tenants.CreateTenant(create, **acting(owner))) == "ACTOR_OF_OTHER_TENANT"


async def test_an_actor_needs_a_role_that_administers(root: Client, fresh_id: str) -> None:
    tenant, owner, member, viewer = await people(root, fresh_id)
    mask = FieldMask(paths=["role"])
    promote = member_service_pb2.UpdateMemberRequest(
        member=member_service_pb2.Member(name=viewer, role="member"), update_mask=mask
    )
    attempts: tuple[tuple[Rpc, Message], ...] = (
        (root.members.UpdateMember, promote),
        (root.members.RemoveMember, member_service_pb2.RemoveMemberRequest(name=viewer)),
        (
            root.members.AddMember,
            member_service_pb2.AddMemberRequest(
                parent=tenant, member_id="new", member=member_service_pb2.Member(role="viewer")
            ),
        ),
        (root.tenants.SuspendTenant, tenant_service_pb2.SuspendTenantRequest(name=tenant)),
        (root.tenants.DeleteTenant, tenant_service_pb2.DeleteTenantRequest(name=tenant)),
    )
    for rpc, request in attempts:
        assert await refused(rpc(request, **acting(member))) == "ACTOR_PERMISSION_MISSING"
    for rpc, request in attempts[:3]:
        await rpc(request, **acting(owner))


async def test_the_token_must_allow_it_too(root: Client, fresh_id: str) -> None:
    tenant, owner, _, _ = await people(root, fresh_id)
    client = root.with_token(await root.create_token({"products/heyoo/tenants": ["get"]}))
    assert await refused(client.keys.CreateApiKey(new_key(tenant, owner), **acting(owner))) == "PERMISSION_MISSING"
    await client.close()


@pytest.fixture
async def uneven(root: Client, fresh_id: str) -> tuple[str, str, str, str]:
    """A tenant whose managers may administer everything and have little themselves: owner, manager, member."""
    from tests.acceptance.test_products import own_spec

    spec = own_spec(fresh_id)
    spec.secret_keys.own_keys_only = False
    manager = spec.roles.add(role="manager")
    manager.grants.add(resource="links", actions=["read", "write"])
    manager.administration.add(resource="*", actions=["*"])
    await root.apply(spec)
    tenant = await root.create_tenant(fresh_id, "acme")
    owner, boss, member = [await root.add_member(tenant, role, role) for role in ("owner", "manager", "member")]
    return tenant, owner, boss, member


async def test_nobody_gives_more_than_they_have(root: Client, uneven: tuple[str, str, str, str]) -> None:
    tenant, owner, manager, member = uneven
    inside = {"mode": types_pb2.ACCESS_MODE_RESTRICTED, "grants": [types_pb2.Grant(resource="links", actions=["read"])]}
    # At creation: for themselves, for the owner within their own, and nothing beyond.
    await root.keys.CreateApiKey(new_key(tenant, manager), **acting(manager))
    small = await root.keys.CreateApiKey(new_key(tenant, owner, **inside), **acting(manager))
    assert await refused(root.keys.CreateApiKey(new_key(tenant, owner), **acting(manager))) == "EXCEEDS_ACTOR"
    assert await refused(root.keys.CreateApiKey(new_key(tenant, member), **acting(manager))) == "EXCEEDS_ACTOR"
    # Through a machine user, which has the owner's role here.
    assert await refused(root.keys.CreateApiKey(new_key(tenant), **acting(manager))) == "EXCEEDS_ACTOR"
    # By an update.
    widen = api_key_service_pb2.UpdateApiKeyRequest(
        api_key=api_key_service_pb2.ApiKey(name=small.api_key.name, mode=types_pb2.ACCESS_MODE_ALL),
        update_mask=FieldMask(paths=["mode"]),
    )
    assert await refused(root.keys.UpdateApiKey(widen, **acting(manager))) == "EXCEEDS_ACTOR"
    # By taking over the secret of a stronger key, or switching it on again.
    strong = await root.create_key(tenant, owner)
    rotate = api_key_service_pb2.RotateApiKeyRequest(name=strong.api_key.name)
    assert await refused(root.keys.RotateApiKey(rotate, **acting(manager))) == "EXCEEDS_ACTOR"
    await root.keys.DisableApiKey(api_key_service_pb2.DisableApiKeyRequest(name=strong.api_key.name), **acting(manager))
    enable = api_key_service_pb2.EnableApiKeyRequest(name=strong.api_key.name)
    assert await refused(root.keys.EnableApiKey(enable, **acting(manager))) == "EXCEEDS_ACTOR"
    # By changing a role, or adding someone with a stronger one.
    promote = member_service_pb2.UpdateMemberRequest(
        member=member_service_pb2.Member(name=manager, role="owner"), update_mask=FieldMask(paths=["role"])
    )
    assert await refused(root.members.UpdateMember(promote, **acting(manager))) == "EXCEEDS_ACTOR"
    add = member_service_pb2.AddMemberRequest(
        parent=tenant, member_id="new", member=member_service_pb2.Member(role="owner")
    )
    assert await refused(root.members.AddMember(add, **acting(manager))) == "EXCEEDS_ACTOR"
    # A publishable key can do what the manager cannot.
    publishable = api_key_service_pb2.CreateApiKeyRequest(
        parent=tenant,
        api_key=api_key_service_pb2.ApiKey(display_name="Key", kind=types_pb2.KEY_KIND_PUBLISHABLE),
    )
    assert await refused(root.keys.CreateApiKey(publishable, **acting(manager))) == "EXCEEDS_ACTOR"


async def test_a_service_token_is_not_taken_over_by_rotation(root: Client) -> None:
    system = "products/gatekey/tenants/system"
    strong = await root.create_key(system, mode="ALL", new_machine_user=True)
    client = root.with_token(
        await root.create_token({f"{system}/apiKeys": ["rotate", "update", "enable"], "products/heyoo": ["get"]})
    )
    rotate = api_key_service_pb2.RotateApiKeyRequest(name=strong.api_key.name)
    assert await refused(client.keys.RotateApiKey(rotate)) == "TOKEN_EXCEEDS_CALLER"
    widen = api_key_service_pb2.UpdateApiKeyRequest(
        api_key=api_key_service_pb2.ApiKey(name=strong.api_key.name, display_name="Mine"),
        update_mask=FieldMask(paths=["display_name"]),
    )
    assert await refused(client.keys.UpdateApiKey(widen)) == "TOKEN_EXCEEDS_CALLER"
    await client.close()


async def test_a_key_of_the_tenant_has_no_more_than_its_maker(root: Client, fresh_id: str) -> None:
    tenant = await root.create_tenant("bitsy", fresh_id)
    owner = await root.add_member(tenant, "owner", "owner")
    member = await root.add_member(tenant, "member", "member")
    grants = [types_pb2.Grant(resource="*", actions=["read", "delete"])]
    too_much = new_key(tenant, tenant, mode=types_pb2.ACCESS_MODE_RESTRICTED, grants=grants)
    with pytest.raises(grpc.RpcError) as raised:
        await root.keys.CreateApiKey(too_much, **acting(member))
    problem = problem_of(raised.value)
    assert problem.reason == "EXCEEDS_ACTOR"
    assert problem.metadata == {"resource": "*", "action": "delete", "role": "member"}
    assert "`delete` on `*`" in problem.message
    created = await root.keys.CreateApiKey(too_much, **acting(owner))
    # A member makes keys; what becomes of them is not theirs.
    rotate = api_key_service_pb2.RotateApiKeyRequest(name=created.api_key.name)
    assert await refused(root.keys.RotateApiKey(rotate, **acting(member))) == "ACTOR_PERMISSION_MISSING"


@pytest.fixture
async def managed(root: Client, fresh_id: str) -> tuple[str, str, str]:
    """A product of tenants' keys, whose managers may administer all keys, and cannot delete: tenant, owner, manager."""
    from tests.acceptance.test_products import own_spec

    spec = own_spec(fresh_id, like="bitsy")
    manager = spec.roles.add(role="manager")
    manager.grants.add(resource="*", actions=["create", "read", "update"])
    manager.administration.add(resource="apiKeys", actions=["*"])
    await root.apply(spec)
    tenant = await root.create_tenant(fresh_id, "acme")
    return tenant, await root.add_member(tenant, "owner", "owner"), await root.add_member(tenant, "boss", "manager")


async def test_a_key_of_the_tenant_is_not_taken_over_by_whoever_has_less(
    root: Client, managed: tuple[str, str, str]
) -> None:
    tenant, owner, manager = managed
    strong = [types_pb2.Grant(resource="*", actions=["delete"])]
    weak = [types_pb2.Grant(resource="*", actions=["read"])]
    restricted = {"mode": types_pb2.ACCESS_MODE_RESTRICTED}
    key = (await root.keys.CreateApiKey(new_key(tenant, tenant, grants=strong, **restricted), **acting(owner))).api_key
    mine = (await root.keys.CreateApiKey(new_key(tenant, tenant, grants=weak, **restricted), **acting(manager))).api_key
    disable = api_key_service_pb2.DisableApiKeyRequest(name=key.name)
    await root.keys.DisableApiKey(disable, **acting(manager))
    widen = api_key_service_pb2.UpdateApiKeyRequest(
        api_key=api_key_service_pb2.ApiKey(name=mine.name, grants=strong), update_mask=FieldMask(paths=["grants"])
    )
    for attempt in (
        root.keys.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(name=key.name), **acting(manager)),
        root.keys.EnableApiKey(api_key_service_pb2.EnableApiKeyRequest(name=key.name), **acting(manager)),
        root.keys.UpdateApiKey(widen, **acting(manager)),
    ):
        assert await refused(attempt) == "EXCEEDS_ACTOR"
    assert (
        await root.keys.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(name=mine.name), **acting(manager))
    ).secret


async def test_a_spec_can_demand_an_actor(root: Client, fresh_id: str) -> None:
    from tests.acceptance.test_products import own_spec

    spec = own_spec(fresh_id)
    spec.actor_required = True
    await root.apply(spec)
    tenant = await root.create_tenant(fresh_id, "acme")
    # Nobody is there yet on whose behalf the first one could be added.
    owner = await root.add_member(tenant, "owner", "owner")
    key = await root.keys.CreateApiKey(new_key(tenant, owner), **acting(owner))
    name = key.api_key.name
    member = member_service_pb2.Member(role="member")
    attempts: tuple[tuple[Rpc, Message], ...] = (
        (root.keys.CreateApiKey, new_key(tenant, owner)),
        (root.keys.CreateApiKey, new_key(tenant)),
        (root.keys.RotateApiKey, api_key_service_pb2.RotateApiKeyRequest(name=name)),
        (root.keys.RevokeApiKey, api_key_service_pb2.RevokeApiKeyRequest(name=name)),
        (root.keys.DeleteApiKey, api_key_service_pb2.DeleteApiKeyRequest(name=name)),
        (root.members.AddMember, member_service_pb2.AddMemberRequest(parent=tenant, member_id="m", member=member)),
        (root.members.RemoveMember, member_service_pb2.RemoveMemberRequest(name=owner)),
        (root.tenants.DeleteTenant, tenant_service_pb2.DeleteTenantRequest(name=tenant)),
    )
    for rpc, request in attempts:
        assert await refused(rpc(request)) == "ACTOR_REQUIRED"
    assert await root.verdict(key.secret, "links", "read") == "ALLOWED"
    await root.tenants.SuspendTenant(tenant_service_pb2.SuspendTenantRequest(name=tenant))
    await root.tenants.ResumeTenant(tenant_service_pb2.ResumeTenantRequest(name=tenant))
    add = member_service_pb2.AddMemberRequest(parent=tenant, member_id="m", member=member)
    await root.members.AddMember(add, **acting(owner))


async def test_a_refusal_names_the_grant_that_is_too_much_and_what_is_allowed(root: Client, fresh_id: str) -> None:
    tenant, _, member, _ = await people(root, fresh_id)
    grants = [types_pb2.Grant(resource="tags", actions=["read"]), types_pb2.Grant(resource="apiKeys", actions=["read"])]
    with pytest.raises(grpc.RpcError) as raised:
        await root.keys.CreateApiKey(new_key(tenant, member, mode=types_pb2.ACCESS_MODE_RESTRICTED, grants=grants))
    problem = problem_of(raised.value)
    assert problem.fields == {"api_key.grants": "GRANTS_EXCEED_OWNER"}
    assert problem.metadata == {"resource": "apiKeys", "action": "read", "role": "member"}
    assert "the role `member`" in problem.message
    assert "`campaigns`: read, write" in problem.message
    grants[1].resource = "people"
    with pytest.raises(grpc.RpcError) as raised:
        await root.keys.CreateApiKey(new_key(tenant, member, mode=types_pb2.ACCESS_MODE_RESTRICTED, grants=grants))
    problem = problem_of(raised.value)
    assert problem.fields == {"api_key.grants": "GRANTS_NOT_OFFERED"}
    assert problem.metadata == {"resource": "people", "action": "read"}
    assert "`tags`: read, write" in problem.message


SYSTEM = "products/gatekey/tenants/system"


async def token_that_must_name_an_actor(root: Client, grants: dict[str, list[str]]) -> Client:
    """A client with such a token."""
    created = await root.create_key(
        SYSTEM, name="On behalf", mode="RESTRICTED", grants=grants, new_machine_user=True, actor_required=True
    )
    assert created.api_key.actor_required
    return root.with_token(created.secret)


async def test_h7_h12_t6_a_token_can_demand_an_actor(root: Client, fresh_id: str) -> None:
    tenant, owner, member, _ = await people(root, fresh_id)
    client = await token_that_must_name_an_actor(root, {"products/heyoo": ["*"]})
    key = (await client.keys.CreateApiKey(new_key(tenant, member), **acting(member))).api_key.name
    for attempt in (
        client.keys.CreateApiKey(new_key(tenant)),
        client.keys.CreateApiKey(new_key(tenant, member)),
        client.keys.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(name=key)),
        client.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=key)),
        client.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=member)),
        client.tenants.DeleteTenant(tenant_service_pb2.DeleteTenantRequest(name=tenant)),
    ):
        assert await refused(attempt) == "ACTOR_REQUIRED"
    # Whoever is named has what their role gives.
    assert await refused(client.keys.CreateApiKey(new_key(tenant), **acting(member))) == "ACTOR_PERMISSION_MISSING"
    assert (await client.keys.CreateApiKey(new_key(tenant), **acting(owner))).machine_user.name
    # Reads, and what the spec demands no actor for either.
    await client.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=key))
    empty = await client.create_tenant("heyoo", f"{fresh_id}e")
    first = await client.add_member(empty, "first", "owner")
    again = member_service_pb2.AddMemberRequest(
        parent=empty, member_id="second", member=member_service_pb2.Member(role="viewer")
    )
    assert await refused(client.members.AddMember(again)) == "ACTOR_REQUIRED"
    await client.members.AddMember(again, **acting(first))
    # Another token is as free as before.
    await root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=key))
    await client.close()


async def test_a_token_that_must_name_an_actor_gives_none_that_need_not(root: Client) -> None:
    client = await token_that_must_name_an_actor(root, {"products": ["*"]})
    grants = {"products/heyoo": ["get"]}
    free = await root.create_key(SYSTEM, mode="RESTRICTED", grants=grants, new_machine_user=True)
    bound = await client.create_key(
        SYSTEM, mode="RESTRICTED", grants=grants, new_machine_user=True, actor_required=True
    )
    update = api_key_service_pb2.UpdateApiKeyRequest(
        api_key=api_key_service_pb2.ApiKey(name=free.api_key.name, display_name="Mine"),
        update_mask=FieldMask(paths=["display_name"]),
    )
    for attempt in (
        client.create_key(SYSTEM, mode="RESTRICTED", grants=grants, new_machine_user=True),
        client.keys.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(name=free.api_key.name)),
        client.keys.EnableApiKey(api_key_service_pb2.EnableApiKeyRequest(name=free.api_key.name)),
        client.keys.UpdateApiKey(update),
    ):
        assert await refused(attempt) == "TOKEN_EXCEEDS_CALLER"
    rotated = await client.keys.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(name=bound.api_key.name))
    assert rotated.api_key.actor_required
    # Nobody takes it off.
    update.api_key.name = bound.api_key.name
    update.update_mask.paths.append("actor_required")
    for anybody in (client, root):
        assert await refused(anybody.keys.UpdateApiKey(update)) == "UPDATE_MASK_INVALID"
    await client.keys.DisableApiKey(api_key_service_pb2.DisableApiKeyRequest(name=free.api_key.name))
    await client.close()


async def test_only_service_tokens_can_demand_an_actor(root: Client, fresh_id: str) -> None:
    tenant, owner, _, _ = await people(root, fresh_id)
    with pytest.raises(grpc.RpcError) as raised:
        await root.keys.CreateApiKey(new_key(tenant, owner, actor_required=True))
    assert problem_of(raised.value).fields == {"api_key.actor_required": "ACTOR_REQUIRED_NOT_ALLOWED"}
