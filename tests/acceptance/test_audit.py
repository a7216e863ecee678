"""The audit log, and calls that are safe to repeat."""

import asyncio
import uuid
from typing import Any

import asyncpg
import grpc
import pytest
from gatekey.core.audit import GENESIS
from gatekey.v1 import api_key_service_pb2, audit_service_pb2, product_service_pb2, tenant_service_pb2, types_pb2
from gatekey_server.store import audit
from google.protobuf.timestamp_pb2 import Timestamp

from tests.acceptance.test_products import own_spec
from tests.support.databases import Sql
from tests.support.server import Client, problem_of


async def events(root: Client, parent: str, **filters: Any) -> list[audit_service_pb2.AuditEvent]:
    """All events of a parent."""
    request = audit_service_pb2.ListAuditEventsRequest(parent=parent, page_size=1000, **filters)
    return list((await root.audit.ListAuditEvents(request)).audit_events)


async def test_every_mutation_leaves_an_event(root: Client, fresh_id: str) -> None:
    tenant = await root.create_tenant("heyoo", fresh_id)
    owner = await root.add_member(tenant, "owner", "owner")
    created = await root.create_key(tenant, owner)
    name = created.api_key.name
    await root.keys.DisableApiKey(
        api_key_service_pb2.DisableApiKeyRequest(name=name, request_id=str(uuid.uuid4())),
        metadata=(("gatekey-actor", owner),),
    )
    await root.keys.DisableApiKey(api_key_service_pb2.DisableApiKeyRequest(name=name))
    await root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=name))
    found = await events(root, tenant)
    assert [(event.sequence, event.verb, event.target) for event in found] == [
        (1, "CreateTenant", tenant),
        (2, "AddMember", owner),
        (3, "CreateApiKey", name),
        (4, "DisableApiKey", name),
        (5, "DeleteApiKey", name),
    ]
    disabled = found[3]
    assert disabled.actor == owner
    assert str(uuid.UUID(disabled.request_id)) == disabled.request_id
    assert disabled.caller.startswith("products/gatekey/tenants/system/apiKeys/key_")
    assert disabled.before["disable_time"] is None
    assert disabled.after["disable_time"]
    assert not found[4].HasField("after")
    assert not found[0].HasField("before")
    assert created.secret[-38:] not in str(found)


async def test_events_are_filtered(root: Client, fresh_id: str) -> None:
    tenant = await root.create_tenant("heyoo", fresh_id)
    owner = await root.add_member(tenant, "owner", "owner")
    await asyncio.sleep(0.01)
    middle = Timestamp()
    middle.GetCurrentTime()
    await root.keys.CreateApiKey(
        api_key_service_pb2.CreateApiKeyRequest(
            parent=tenant,
            api_key=api_key_service_pb2.ApiKey(display_name="Key", owner=owner, mode=types_pb2.ACCESS_MODE_ALL),
        ),
        metadata=(("gatekey-actor", owner),),
    )
    assert [event.sequence for event in await events(root, tenant, verb="AddMember")] == [2]
    assert [event.sequence for event in await events(root, tenant, target=tenant)] == [1]
    assert [event.sequence for event in await events(root, tenant, actor=owner)] == [3]
    assert [event.sequence for event in await events(root, tenant, start_time=middle)] == [3]
    assert [event.sequence for event in await events(root, tenant, end_time=middle)] == [1, 2]
    first = await root.audit.ListAuditEvents(audit_service_pb2.ListAuditEventsRequest(parent=tenant, page_size=2))
    second = await root.audit.ListAuditEvents(
        audit_service_pb2.ListAuditEventsRequest(parent=tenant, page_token=first.next_page_token)
    )
    assert [event.sequence for event in (*first.audit_events, *second.audit_events)] == [1, 2, 3]


async def test_the_chain_shows_a_change_and_a_gap(root: Client, fresh_id: str, sql: Sql) -> None:
    tenant = await root.create_tenant("heyoo", fresh_id)
    for number in range(5):
        await root.add_member(tenant, f"m{number}", "owner")

    async def intact() -> bool:
        stored = (await audit.page(sql, "heyoo", fresh_id, audit.Filter(), 0, 100)).items
        previous = GENESIS
        for number, link in enumerate(stored, 1):
            if link.event.sequence != number or link.event.hash_after(previous) != link.hash:
                return False
            previous = link.hash
        return len(stored) > 0

    assert await intact()
    transaction = sql.transaction()
    await transaction.start()
    await sql.execute("alter table audit_event disable trigger audit_event_append_only")
    await sql.execute("update audit_event set actor = 'x' where tenant_id = $1 and sequence = 3", fresh_id)
    assert not await intact()
    await transaction.rollback()
    transaction = sql.transaction()
    await transaction.start()
    await sql.execute("alter table audit_event disable trigger audit_event_append_only")
    await sql.execute("delete from audit_event where tenant_id = $1 and sequence = 3", fresh_id)
    assert not await intact()
    await transaction.rollback()
    assert await intact()


@pytest.mark.parametrize(
    "statement",
    ["update audit_event set actor = 'x'", "delete from audit_event", "truncate audit_event"],
)
async def test_events_are_never_changed(sql: Sql, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="never changed"):
        await sql.execute(statement)


async def test_a_repetition_gets_the_same_answer_and_no_secret(root: Client, fresh_id: str) -> None:
    tenant = await root.create_tenant("heyoo", fresh_id)
    owner = await root.add_member(tenant, "owner", "owner")
    request = api_key_service_pb2.CreateApiKeyRequest(
        parent=tenant,
        api_key=api_key_service_pb2.ApiKey(display_name="Key", owner=owner, mode=types_pb2.ACCESS_MODE_ALL),
        request_id=str(uuid.uuid4()),
    )
    first = await root.keys.CreateApiKey(request)
    second = await root.keys.CreateApiKey(request)
    assert (first.secret_withheld, second.secret_withheld) == (False, True)
    assert first.secret
    assert not second.secret
    assert second.api_key == first.api_key
    listed = await root.keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest(parent=tenant))
    assert len(listed.api_keys) == 1
    assert len(await events(root, tenant, verb="CreateApiKey")) == 1


async def test_repetitions_at_once_do_it_once(root: Client, fresh_id: str) -> None:
    request = tenant_service_pb2.CreateTenantRequest(
        parent="products/heyoo", tenant_id=fresh_id, request_id=str(uuid.uuid4())
    )
    answers = await asyncio.gather(*(root.tenants.CreateTenant(request) for _ in range(10)))
    assert all(answer == answers[0] for answer in answers)


async def test_a_request_id_stands_for_one_request_of_one_caller(root: Client, fresh_id: str) -> None:
    request = tenant_service_pb2.CreateTenantRequest(
        parent="products/heyoo", tenant_id=fresh_id, request_id=str(uuid.uuid4())
    )
    await root.tenants.CreateTenant(request)
    other = tenant_service_pb2.CreateTenantRequest()
    other.CopyFrom(request)
    other.tenant_id = f"{fresh_id}x"
    with pytest.raises(grpc.RpcError) as raised:
        await root.tenants.CreateTenant(other)
    problem = problem_of(raised.value)
    assert (problem.code, problem.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    client = root.with_token(await root.create_token({"products/heyoo": ["*"]}))
    assert (await client.tenants.CreateTenant(other)).name.endswith("x")
    await client.close()
    other.request_id = "not-a-uuid"
    with pytest.raises(grpc.RpcError) as raised:
        await root.tenants.CreateTenant(other)
    assert problem_of(raised.value).fields == {"request_id": "REQUEST_ID_INVALID"}


async def test_a_repeated_deletion_by_force_spares_what_came_after(root: Client, fresh_id: str) -> None:
    await root.apply(own_spec(fresh_id))
    await root.create_tenant(fresh_id, "first")
    request = product_service_pb2.DeleteProductRequest(
        name=f"products/{fresh_id}", force=True, request_id=str(uuid.uuid4())
    )
    first = await root.products.DeleteProduct(request)
    assert first.deleted.tenants == 1
    await root.apply(own_spec(fresh_id))
    second = await root.create_tenant(fresh_id, "second")
    assert await root.products.DeleteProduct(request) == first
    assert (await root.tenants.GetTenant(tenant_service_pb2.GetTenantRequest(name=second))).name == second


async def test_a_request_that_failed_can_be_repeated(root: Client, fresh_id: str) -> None:
    request = tenant_service_pb2.CreateTenantRequest(
        parent="products/none", tenant_id=fresh_id, request_id=str(uuid.uuid4())
    )
    with pytest.raises(grpc.RpcError):
        await root.tenants.CreateTenant(request)
    request.parent = "products/heyoo"
    assert (await root.tenants.CreateTenant(request)).name


async def test_a_request_id_is_forgotten_after_a_day(root: Client, fresh_id: str, sql: Sql) -> None:
    request = tenant_service_pb2.CreateTenantRequest(
        parent="products/heyoo", tenant_id=fresh_id, request_id=str(uuid.uuid4())
    )
    await root.tenants.CreateTenant(request)
    aged = await sql.execute(
        "update mutation_request set create_time = create_time - interval '25 hours' where request_id = $1",
        uuid.UUID(request.request_id),
    )
    assert aged == "UPDATE 1"
    with pytest.raises(grpc.RpcError) as raised:
        await root.tenants.CreateTenant(request)
    assert problem_of(raised.value).reason == "TENANT_EXISTS"


async def chains(root: Client, parent: str, size: int) -> list[tuple[str, int]]:
    """All chains, page by page."""
    found = []
    request = audit_service_pb2.ListAuditChainsRequest(parent=parent, page_size=size)
    while True:
        page = await root.audit.ListAuditChains(request)
        assert len(page.audit_chains) <= size
        found += [(chain.parent, chain.sequence) for chain in page.audit_chains]
        request.page_token = page.next_page_token
        if not request.page_token:
            return found


async def test_the_chains_of_what_is_gone_are_listed(root: Client, fresh_id: str) -> None:
    await root.apply(own_spec(fresh_id, "tally"))
    names = [await root.create_tenant(fresh_id, f"t{number}") for number in range(5)]
    await root.add_member(names[2], "ann", "admin")
    product = f"products/{fresh_id}"
    await root.products.DeleteProduct(product_service_pb2.DeleteProductRequest(name=product, force=True))
    wanted = [(product, 2), *((name, 2 if name == names[2] else 1) for name in names)]
    for size in (1, 2, 3, 50):
        assert await chains(root, product, size) == wanted
    everything = await chains(root, "", 7)
    assert everything == await chains(root, "", 1000)
    assert len(set(everything)) == len(everything)
    assert [each for each in everything if each[0].startswith(f"{product}/") or each[0] == product] == wanted
    assert await chains(root, "products/nothing-is-here", 50) == []
    client = root.with_token(await root.create_token({product: ["list"]}))
    assert await chains(client, product, 50) == wanted
    with pytest.raises(grpc.RpcError) as raised:
        await client.audit.ListAuditChains(audit_service_pb2.ListAuditChainsRequest())
    assert problem_of(raised.value).reason == "PERMISSION_MISSING"
    await client.close()
