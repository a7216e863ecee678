"""Reading and listing: every list in pages, and what is not there."""

import asyncio
from typing import Any

import grpc
import pytest
from gatekey.v1 import (
    api_key_service_pb2,
    machine_user_service_pb2,
    member_service_pb2,
    product_service_pb2,
    tenant_service_pb2,
)
from google.protobuf.message import Message

from tests.acceptance.test_products import own_spec
from tests.support.server import Client, Rpc, problem_of


async def pages(rpc: Any, request: Any, field: str, page_size: int) -> list[list[Any]]:
    """All pages of a list."""
    found, token = [], ""
    for _ in range(100):
        query = type(request)()
        query.CopyFrom(request)
        query.page_size = page_size
        query.page_token = token
        answer = await rpc(query)
        found.append(list(getattr(answer, field)))
        token = answer.next_page_token
        if not token:
            return found
    raise AssertionError("the list does not end")


@pytest.mark.parametrize("page_size", [1, 2, 3, 7, 1000])
async def test_keys_in_the_order_of_their_creation(root: Client, fresh_id: str, page_size: int) -> None:
    tenant = await root.create_tenant("heyoo", fresh_id)
    owner = await root.add_member(tenant, "owner", "owner")
    other = await root.add_member(tenant, "other", "owner")
    made = []
    for number in range(7):
        made.append((await root.create_key(tenant, owner if number % 2 else other, name=f"{number}")).api_key)
        await asyncio.sleep(0.002)
    request = api_key_service_pb2.ListApiKeysRequest(parent=tenant)
    found = await pages(root.keys.ListApiKeys, request, "api_keys", page_size)
    assert [key for page in found for key in page] == made
    assert all(len(page) == page_size for page in found[:-1])
    assert found[-1]
    request.owner = owner
    found = await pages(root.keys.ListApiKeys, request, "api_keys", page_size)
    assert [key for page in found for key in page] == [key for key in made if key.owner == owner]


async def test_a_list_goes_on_where_it_was_while_rows_come_and_go(root: Client, fresh_id: str) -> None:
    tenant = await root.create_tenant("heyoo", fresh_id)
    members = [await root.add_member(tenant, f"m{number}", "member") for number in range(6)]
    first = await root.members.ListPeople(member_service_pb2.ListPeopleRequest(parent=tenant, page_size=3))
    await root.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=members[0]))
    await root.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=members[2]))
    new = await root.add_member(tenant, "new", "member")
    second = await root.members.ListPeople(
        member_service_pb2.ListPeopleRequest(parent=tenant, page_size=50, page_token=first.next_page_token)
    )
    assert [person.member.name for person in second.people] == [*members[3:], new]


async def test_tenants_with_and_without_deleted_ones(root: Client, fresh_id: str) -> None:
    await root.apply(own_spec(fresh_id))
    names = [await root.create_tenant(fresh_id, f"t{number}") for number in range(5)]
    deleted = (await root.tenants.DeleteTenant(tenant_service_pb2.DeleteTenantRequest(name=names[1]))).tenant
    assert deleted.state == deleted.STATE_DELETED
    assert deleted.HasField("delete_time")
    request = tenant_service_pb2.ListTenantsRequest(parent=f"products/{fresh_id}")
    living = await pages(root.tenants.ListTenants, request, "tenants", 2)
    assert [tenant.name for page in living for tenant in page] == [names[0], *names[2:]]
    request.show_deleted = True
    every = await pages(root.tenants.ListTenants, request, "tenants", 2)
    assert [tenant.name for page in every for tenant in page] == names
    assert await root.tenants.GetTenant(tenant_service_pb2.GetTenantRequest(name=names[1])) == deleted


async def test_products(root: Client, fresh_id: str) -> None:
    for letter in "ab":
        await root.apply(own_spec(f"{fresh_id}{letter}"))
    found = await pages(root.products.ListProducts, product_service_pb2.ListProductsRequest(), "products", 2)
    names = [product.name for page in found for product in page]
    assert names == sorted(names)
    assert {"products/gatekey", "products/heyoo", f"products/{fresh_id}a", f"products/{fresh_id}b"} <= set(names)


async def test_machine_users_that_are_independent_of_keys(root: Client, fresh_id: str) -> None:
    spec = own_spec(fresh_id)
    spec.machine_users.lifetime = spec.machine_users.LIFETIME_INDEPENDENT
    await root.apply(spec)
    tenant = await root.create_tenant(fresh_id, "acme")
    users = []
    for number in range(4):
        request = machine_user_service_pb2.CreateMachineUserRequest(
            parent=tenant,
            machine_user_id=f"bot-{number}" if number else "",
            machine_user=machine_user_service_pb2.MachineUser(display_name=f"Bot {number}"),
        )
        users.append(await root.machine_users.CreateMachineUser(request))
    assert users[1].name == f"{tenant}/machineUsers/bot-1"
    assert users[1].role == "owner"
    listing = machine_user_service_pb2.ListMachineUsersRequest(parent=tenant)
    found = await pages(root.machine_users.ListMachineUsers, listing, "machine_users", 3)
    assert [user for page in found for user in page] == users
    key = await root.create_key(tenant, users[1].name)
    await root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=key.api_key.name))
    get = machine_user_service_pb2.GetMachineUserRequest(name=users[1].name)
    assert await root.machine_users.GetMachineUser(get) == users[1]


async def test_machine_users_that_need_a_key_are_not_created_without(root: Client, fresh_id: str) -> None:
    for product, reason in (("heyoo", "MACHINE_USER_NEEDS_KEY"), ("bitsy", "MACHINE_USERS_NOT_OFFERED")):
        tenant = await root.create_tenant(product, fresh_id)
        with pytest.raises(grpc.RpcError) as raised:
            await root.machine_users.CreateMachineUser(machine_user_service_pb2.CreateMachineUserRequest(parent=tenant))
        assert problem_of(raised.value).reason == reason


async def test_members(root: Client, fresh_id: str) -> None:
    tenant = await root.create_tenant("heyoo", fresh_id)
    request = member_service_pb2.AddMemberRequest(
        parent=tenant,
        member_id="auth0|x".replace("|", ":"),
        member=member_service_pb2.Member(role="viewer", display_name="Viewer One"),
    )
    added = await root.members.AddMember(request)
    assert (added.role, added.display_name) == ("viewer", "Viewer One")
    assert await root.members.GetMember(member_service_pb2.GetMemberRequest(name=added.name)) == added
    with pytest.raises(grpc.RpcError) as raised:
        await root.members.AddMember(request)
    assert problem_of(raised.value).reason == "MEMBER_EXISTS"


async def test_what_is_taken_cannot_be_created_again(root: Client, fresh_id: str) -> None:
    tenant = await root.create_tenant("heyoo", fresh_id)
    await root.tenants.DeleteTenant(tenant_service_pb2.DeleteTenantRequest(name=tenant))
    with pytest.raises(grpc.RpcError) as raised:
        await root.create_tenant("heyoo", fresh_id)
    problem = problem_of(raised.value)
    assert (problem.code, problem.reason) == (grpc.StatusCode.ALREADY_EXISTS, "TENANT_EXISTS")


async def test_a_deleted_tenants_keys_stop_working_and_it_takes_no_changes(root: Client, fresh_id: str) -> None:
    tenant = await root.create_tenant("heyoo", fresh_id)
    owner = await root.add_member(tenant, "owner", "owner")
    key = await root.create_key(tenant, owner)
    assert await root.verdict(key.secret, "campaigns", "read") == "ALLOWED"
    await root.tenants.DeleteTenant(tenant_service_pb2.DeleteTenantRequest(name=tenant))
    assert await root.verdict(key.secret, "campaigns", "read") == "TENANT_DELETED"
    for attempt in (
        root.tenants.DeleteTenant(tenant_service_pb2.DeleteTenantRequest(name=tenant)),
        root.add_member(tenant, "new", "owner"),
        root.create_key(tenant, owner),
        root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=key.api_key.name)),
        root.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=owner)),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            await attempt
        assert problem_of(raised.value).reason == "TENANT_DELETED"
    kept = await root.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=key.api_key.name))
    kept.ClearField("last_use_time")
    assert kept == key.api_key


async def test_what_is_not_there(root: Client, fresh_id: str) -> None:
    tenant = await root.create_tenant("heyoo", fresh_id)
    key = f"{tenant}/apiKeys/key_00000000000000000000000000"
    for attempt, reason in (
        (root.products.GetProduct(product_service_pb2.GetProductRequest(name="products/none")), "PRODUCT_NOT_FOUND"),
        (root.create_tenant("none", "x"), "PRODUCT_NOT_FOUND"),
        (
            root.tenants.ListTenants(tenant_service_pb2.ListTenantsRequest(parent="products/none")),
            "PRODUCT_NOT_FOUND",
        ),
        (
            root.tenants.GetTenant(tenant_service_pb2.GetTenantRequest(name="products/heyoo/tenants/none")),
            "TENANT_NOT_FOUND",
        ),
        (
            root.tenants.GetTenant(tenant_service_pb2.GetTenantRequest(name="products/none/tenants/none")),
            "PRODUCT_NOT_FOUND",
        ),
        (root.add_member("products/heyoo/tenants/none", "u", "owner"), "TENANT_NOT_FOUND"),
        (
            root.members.GetMember(member_service_pb2.GetMemberRequest(name=f"{tenant}/members/none")),
            "MEMBER_NOT_FOUND",
        ),
        (
            root.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=f"{tenant}/members/none")),
            "MEMBER_NOT_FOUND",
        ),
        (root.create_key(tenant, f"{tenant}/members/none"), "MEMBER_NOT_FOUND"),
        (root.create_key(tenant, f"{tenant}/machineUsers/none"), "MACHINE_USER_NOT_FOUND"),
        (root.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=key)), "API_KEY_NOT_FOUND"),
        (root.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=f"{tenant}/apiKeys/x")), "API_KEY_NOT_FOUND"),
        (root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=key)), "API_KEY_NOT_FOUND"),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            await attempt
        problem = problem_of(raised.value)
        assert (problem.code, problem.reason) == (grpc.StatusCode.NOT_FOUND, reason)


async def test_a_key_of_another_tenant_is_not_there(root: Client, fresh_id: str) -> None:
    mine = await root.create_tenant("heyoo", fresh_id)
    other = await root.create_tenant("heyoo", f"{fresh_id}x")
    owner = await root.add_member(mine, "owner", "owner")
    created = await root.create_key(mine, owner)
    foreign = created.api_key.name.replace(mine, other)
    attempts: list[tuple[Rpc, Message]] = [
        (root.keys.GetApiKey, api_key_service_pb2.GetApiKeyRequest(name=foreign)),
        (root.keys.DeleteApiKey, api_key_service_pb2.DeleteApiKeyRequest(name=foreign)),
    ]
    for rpc, request in attempts:
        with pytest.raises(grpc.RpcError) as raised:
            await rpc(request)
        assert problem_of(raised.value).reason == "API_KEY_NOT_FOUND"
    assert await root.verdict(created.secret, "campaigns", "read") == "ALLOWED"
