"""Applying, replacing and deleting products."""

import asyncio

import grpc
import pytest
from gatekey.v1 import (
    api_key_service_pb2,
    product_service_pb2,
    product_spec_pb2,
    tenant_service_pb2,
    types_pb2,
)
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support.server import Client, problem_of, read_example


def own_spec(product: str, like: str = "codeqr") -> product_spec_pb2.ProductSpec:
    """A spec like an example, under another id and with other prefixes."""
    spec = read_example(like)
    spec.product = product
    spec.secret_keys.prefix = f"{product}_"
    if spec.HasField("publishable_keys"):
        spec.publishable_keys.prefix = f"{product}_pub_"
    return spec


async def read(root: Client, product: str) -> product_service_pb2.Product:
    """A product as it is now."""
    request = product_service_pb2.GetProductRequest(name=f"products/{product}")
    answer: product_service_pb2.Product = await root.products.GetProduct(request)
    return answer


async def refused(root: Client, spec: product_spec_pb2.ProductSpec) -> dict[str, str]:
    """The counts with which a spec is refused; nothing was applied."""
    before = await read(root, spec.product)
    with pytest.raises(grpc.RpcError) as raised:
        await root.apply(spec)
    problem = problem_of(raised.value)
    assert (problem.code, problem.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SPEC_STRANDS")
    assert await read(root, spec.product) == before
    return problem.metadata


async def test_a_product_is_created_and_read_back_as_it_was_applied(root: Client, fresh_id: str) -> None:
    spec = own_spec(fresh_id)
    spec.secret_keys.max_lifetime.FromSeconds(86400)
    created = await root.apply(spec)
    assert created.spec == spec
    assert created.name == f"products/{fresh_id}"
    assert created.spec_version == 1
    assert await read(root, fresh_id) == created


async def test_applying_what_is_in_force_changes_nothing(root: Client, fresh_id: str) -> None:
    created = await root.apply(own_spec(fresh_id))
    assert await root.apply(own_spec(fresh_id)) == created


async def test_a_changed_spec_counts_at_the_next_check(root: Client, fresh_id: str) -> None:
    spec = own_spec(fresh_id)
    await root.apply(spec)
    tenant = await root.create_tenant(fresh_id, "acme")
    member = await root.add_member(tenant, "m", "member")
    key = (await root.create_key(tenant, member)).secret
    assert await root.verdict(key, "domains/acme.com", "write") == "OWNER_PERMISSION_MISSING"
    spec.roles[1].grants.add(resource="domains", actions=["write"])
    changed = await root.apply(spec)
    assert changed.spec_version == 2
    assert await root.verdict(key, "domains/acme.com", "write") == "ALLOWED"
    del spec.roles[1].grants[-1]
    await root.apply(spec)
    assert await root.verdict(key, "domains/acme.com", "write") == "OWNER_PERMISSION_MISSING"


async def test_all_means_what_the_spec_defines_later_as_well(root: Client, fresh_id: str) -> None:
    spec = own_spec(fresh_id)
    await root.apply(spec)
    tenant = await root.create_tenant(fresh_id, "acme")
    owner = await root.add_member(tenant, "owner", "owner")
    key = (await root.create_key(tenant, owner, mode="ALL")).secret
    assert await root.verdict(key, "invoices/1", "pay") == "RESOURCE_UNKNOWN"
    spec.collections.add(pattern="invoices", actions=["pay"])
    await root.apply(spec)
    assert await root.verdict(key, "invoices/1", "pay") == "ALLOWED"


async def test_a_role_in_use_cannot_go(root: Client, fresh_id: str) -> None:
    spec = own_spec(fresh_id)
    await root.apply(spec)
    tenant = await root.create_tenant(fresh_id, "acme")
    members = [await root.add_member(tenant, f"m{number}", "member") for number in range(3)]
    key = (await root.create_key(tenant, members[0])).secret
    del spec.roles[1]
    assert await refused(root, spec) == {"members.member": "3"}
    assert await root.verdict(key, "links", "read") == "ALLOWED"
    await root.apply(spec, force=True)
    assert await root.verdict(key, "links", "read") == "OWNER_PERMISSION_MISSING"


async def test_a_collection_that_keys_name_cannot_go(root: Client, fresh_id: str) -> None:
    spec = own_spec(fresh_id)
    await root.apply(spec)
    tenant = await root.create_tenant(fresh_id, "acme")
    owner = await root.add_member(tenant, "owner", "owner")
    key = (await root.create_key(tenant, owner, mode="RESTRICTED", grants={"tags": ["read"]})).secret
    await root.create_key(tenant, owner, mode="RESTRICTED", grants={"links": ["read"]})
    for part in (spec.collections, spec.roles[1].grants, spec.secret_keys.restricted.grantable):
        for index in reversed(range(len(part))):
            if getattr(part[index], "pattern", "") == "tags" or getattr(part[index], "resource", "") == "tags":
                del part[index]
    assert await refused(root, spec) == {"keys": "1"}
    await root.apply(spec, force=True)
    assert await root.verdict(key, "tags", "read") == "RESOURCE_UNKNOWN"


async def test_a_mode_a_kind_and_machine_users_in_use_cannot_go(root: Client, fresh_id: str) -> None:
    spec = own_spec(fresh_id)
    await root.apply(spec)
    tenant = await root.create_tenant(fresh_id, "acme")
    owner = await root.add_member(tenant, "owner", "owner")
    read_only = (await root.create_key(tenant, owner, mode="READ_ONLY")).secret
    publishable = (await root.create_key(tenant, kind="PUBLISHABLE")).secret
    machine = (await root.create_key(tenant, new_machine_user=True)).secret
    spec.secret_keys.modes.remove(types_pb2.ACCESS_MODE_READ_ONLY)
    spec.ClearField("publishable_keys")
    spec.ClearField("machine_users")
    assert await refused(root, spec) == {"machine_users": "1", "keys": "2"}
    await root.apply(spec, force=True)
    assert await root.verdict(read_only, "links", "read") == "KEY_PERMISSION_MISSING"
    assert await root.verdict(publishable, "events", "track") == "KEY_PERMISSION_MISSING"
    assert await root.verdict(machine, "links", "read") == "OWNER_PERMISSION_MISSING"


async def test_what_deleted_tenants_hold_does_not_stand_in_the_way(root: Client, fresh_id: str) -> None:
    spec = own_spec(fresh_id)
    await root.apply(spec)
    tenant = await root.create_tenant(fresh_id, "acme")
    await root.add_member(tenant, "m", "member")
    await root.tenants.DeleteTenant(tenant_service_pb2.DeleteTenantRequest(name=tenant))
    del spec.roles[1]
    assert (await root.apply(spec)).spec_version == 2


async def test_two_products_cannot_have_the_same_prefix(root: Client, fresh_id: str) -> None:
    await root.apply(own_spec(fresh_id))
    other = own_spec(f"{fresh_id}b")
    other.publishable_keys.prefix = f"{fresh_id}_"
    with pytest.raises(grpc.RpcError) as raised:
        await root.apply(other)
    problem = problem_of(raised.value)
    assert (problem.reason, problem.metadata) == ("PREFIX_TAKEN", {"prefix": f"{fresh_id}_"})
    with pytest.raises(grpc.RpcError):
        await read(root, other.product)


async def test_a_product_may_exchange_its_own_prefixes(root: Client, fresh_id: str) -> None:
    spec = own_spec(fresh_id)
    await root.apply(spec)
    secret, publishable = spec.secret_keys.prefix, spec.publishable_keys.prefix
    spec.secret_keys.prefix, spec.publishable_keys.prefix = publishable, secret
    assert (await root.apply(spec)).spec_version == 2


async def test_creations_at_once_make_one_product(root: Client, fresh_id: str) -> None:
    spec = own_spec(fresh_id)
    answers = await asyncio.gather(*(root.apply(spec) for _ in range(10)))
    assert {answer.spec_version for answer in answers} == {1}


async def test_a_product_with_tenants_is_deleted_only_by_force(root: Client, fresh_id: str) -> None:
    spec = own_spec(fresh_id)
    await root.apply(spec)
    keys = []
    for number in range(3):
        tenant = await root.create_tenant(fresh_id, f"acme-{number}")
        owner = await root.add_member(tenant, "owner", "owner")
        keys.append((await root.create_key(tenant, owner)).secret)
    request = product_service_pb2.DeleteProductRequest(name=f"products/{fresh_id}")
    with pytest.raises(grpc.RpcError) as raised:
        await root.products.DeleteProduct(request)
    problem = problem_of(raised.value)
    assert (problem.reason, problem.metadata) == ("PRODUCT_HAS_TENANTS", {"tenants": "3"})
    assert problem.message.endswith("still has tenants, deleted ones included: 3")
    assert await root.verdict(keys[0], "links", "read") == "ALLOWED"
    request.force = True
    await root.products.DeleteProduct(request)
    assert {await root.verdict(key, "links", "read") for key in keys} == {"KEY_UNKNOWN"}
    with pytest.raises(grpc.RpcError) as raised:
        await root.products.DeleteProduct(request)
    assert problem_of(raised.value).reason == "PRODUCT_NOT_FOUND"
    # Its prefixes are free again.
    assert (await root.apply(spec)).spec_version == 1


async def test_a_product_without_tenants_is_deleted(root: Client, fresh_id: str) -> None:
    await root.apply(own_spec(fresh_id))
    await root.products.DeleteProduct(product_service_pb2.DeleteProductRequest(name=f"products/{fresh_id}"))
    with pytest.raises(grpc.RpcError) as raised:
        await read(root, fresh_id)
    assert problem_of(raised.value).reason == "PRODUCT_NOT_FOUND"


async def test_the_longest_life_of_keys(root: Client, fresh_id: str) -> None:
    spec = own_spec(fresh_id)
    spec.secret_keys.max_lifetime.FromSeconds(3600)
    await root.apply(spec)
    tenant = await root.create_tenant(fresh_id, "acme")
    owner = await root.add_member(tenant, "owner", "owner")
    created = (await root.create_key(tenant, owner)).api_key
    life_s = created.expire_time.ToSeconds() - created.create_time.ToSeconds()
    assert abs(life_s - 3600) <= 2
    too_far = api_key_service_pb2.ApiKey()
    too_far.expire_time.FromSeconds(created.create_time.ToSeconds() + 7200)
    with pytest.raises(grpc.RpcError) as raised:
        await root.create_key(tenant, owner, expire_time=too_far.expire_time)
    problem = problem_of(raised.value)
    assert problem.fields == {"api_key.expire_time": "EXPIRE_TIME_TOO_FAR"}
    assert problem.message.endswith("keys of this product live at most 1 hour")


async def test_what_would_be_stranded_is_named(root: Client, fresh_id: str) -> None:
    spec = own_spec(fresh_id)
    await root.apply(spec)
    tenant = await root.create_tenant(fresh_id, "acme")
    owner = await root.add_member(tenant, "owner", "owner")
    await root.add_member(tenant, "m", "member")
    grants = {"tags": ["read"], "links": ["read", "write"]}
    key = (await root.create_key(tenant, owner, mode="RESTRICTED", grants=grants)).api_key.name
    assert not (await get_key(root, key)).stranded
    narrower = own_spec(fresh_id)
    narrower.secret_keys.restricted.grantable[0].actions.remove("write")
    del narrower.roles[1]
    with pytest.raises(grpc.RpcError) as raised:
        await root.apply(narrower)
    problem = problem_of(raised.value)
    assert (problem.reason, problem.metadata) == ("SPEC_STRANDS", {"members.member": "1", "keys": "1"})
    assert "tenants/acme/members/m: there is no role `member`" in problem.message
    assert f"tenants/acme/apiKeys/{key.rsplit('/', 1)[1]}: `write` on `links` cannot be given" in problem.message
    await root.apply(narrower, force=True)
    stranded = await get_key(root, key)
    assert stranded.stranded == "`write` on `links` cannot be given"
    listed = await root.keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest(parent=tenant))
    assert list(listed.api_keys) == [stranded]
    # What is lost already needs no force again; what is lost besides does.
    narrower.display_name = "Shop"
    assert (await root.apply(narrower)).spec_version == 3
    narrower.secret_keys.restricted.grantable.pop()
    assert await refused(root, narrower) == {"keys": "1"}
    await root.apply(own_spec(fresh_id))
    assert not (await get_key(root, key)).stranded


async def test_a_tenant_is_not_left_without_an_owner_by_a_spec(root: Client, fresh_id: str) -> None:
    spec = own_spec(fresh_id)
    await root.apply(spec)
    tenants = {}
    for tenant_id in ("lonely", "safe", "deleted"):
        tenants[tenant_id] = tenant = await root.create_tenant(fresh_id, tenant_id)
        await root.add_member(tenant, "owner", "owner")
        if tenant_id == "safe":
            await root.add_member(tenant, "m", "member")
    await root.tenants.DeleteTenant(tenant_service_pb2.DeleteTenantRequest(name=tenants["deleted"]))
    spec.roles[0].owner, spec.roles[1].owner = False, True
    with pytest.raises(grpc.RpcError) as raised:
        await root.apply(spec)
    problem = problem_of(raised.value)
    assert (problem.reason, problem.metadata) == ("SPEC_STRANDS", {"tenants_without_owner": "1"})
    assert "tenants/lonely: nobody has the role `member`" in problem.message
    assert (await root.apply(spec, force=True)).spec_version == 2


async def test_an_unchanged_spec_is_said_to_be(root: Client, fresh_id: str) -> None:
    spec = own_spec(fresh_id)
    for request, unchanged in ((spec, False), (spec, True)):
        call = root.products.ApplyProduct(product_service_pb2.ApplyProductRequest(spec=request))
        assert (await call).spec_version == 1
        assert ("gatekey-unchanged" in dict(await call.trailing_metadata())) == unchanged


async def test_an_owner_that_is_not_offered_any_more_has_no_keys(root: Client, fresh_id: str) -> None:
    spec = own_spec(fresh_id)
    spec.secret_keys.owners.append(product_spec_pb2.SecretKeyPolicy.OWNER_TENANT)
    await root.apply(spec)
    tenant = await root.create_tenant(fresh_id, "acme")
    created = await root.create_key(tenant, tenant, mode="ALL")
    assert await root.verdict(created.secret, "links", "read") == "ALLOWED"
    spec.secret_keys.owners.pop()
    assert await refused(root, spec) == {"keys": "1"}
    await root.apply(spec, force=True)
    assert await root.verdict(created.secret, "links", "read") == "KEY_PERMISSION_MISSING"
    assert (await get_key(root, created.api_key.name)).stranded
    with pytest.raises(grpc.RpcError) as raised:
        await root.create_key(tenant, tenant, mode="ALL")
    assert problem_of(raised.value).fields == {"api_key.owner": "OWNER_NOT_OFFERED"}


async def test_publishable_keys_live_no_longer_than_the_spec_says(root: Client, fresh_id: str) -> None:
    spec = own_spec(fresh_id)
    spec.publishable_keys.max_lifetime.FromSeconds(3600)
    await root.apply(spec)
    tenant = await root.create_tenant(fresh_id, "acme")
    created = (await root.create_key(tenant, kind="PUBLISHABLE")).api_key
    assert abs(created.expire_time.seconds - created.create_time.seconds - 3600) <= 1
    with pytest.raises(grpc.RpcError) as raised:
        await root.create_key(
            tenant, kind="PUBLISHABLE", expire_time=Timestamp(seconds=created.expire_time.seconds + 60)
        )
    assert problem_of(raised.value).fields == {"api_key.expire_time": "EXPIRE_TIME_TOO_FAR"}


async def test_who_may_not_apply_a_spec_is_told_nothing_of_it(root: Client) -> None:
    """The caller is judged by the product's id, before anything of the spec is read."""
    client = root.with_token(await root.create_token({"products/heyoo/checks": ["create"]}))
    wrong = read_example("heyoo")
    wrong.roles[0].grants.extend([types_pb2.Grant(resource="//", actions=["?"])] * 9_000)
    try:
        for product, reason in (("heyoo", "PERMISSION_MISSING"), ("tally", "PRODUCT_NOT_FOUND")):
            wrong.product = product
            with pytest.raises(grpc.RpcError) as raised:
                await client.apply(wrong)
            assert problem_of(raised.value).reason == reason
        wrong.product = "No id"
        with pytest.raises(grpc.RpcError) as raised:
            await client.apply(wrong)
        assert problem_of(raised.value).fields == {"spec.product": "PRODUCT_ID_INVALID"}
        with pytest.raises(grpc.RpcError) as raised:
            await root.apply(wrong)
        assert problem_of(raised.value).fields == {"spec.roles[0].grants": "TOO_MANY"}
        del wrong.roles[0].grants[200:]
        with pytest.raises(grpc.RpcError) as raised:
            await root.apply(wrong)
        problem = problem_of(raised.value)
        assert {"PRODUCT_ID_INVALID", "RESOURCE_INVALID"} <= set(problem.fields.values())
        assert int(problem.metadata["unlisted"]) > 300
    finally:
        await client.close()


async def get_key(root: Client, name: str) -> api_key_service_pb2.ApiKey:
    """A key as it is shown."""
    key: api_key_service_pb2.ApiKey = await root.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=name))
    return key
