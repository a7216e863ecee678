"""What is wrong with one row harms no other: lists, maintenance and the writing of uses go on beside it."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import asyncpg
import grpc
import pytest
from gatekey.core.names import parse_key_id
from gatekey.core.secrets import new_secret
from gatekey.core.times import MAX_TIME, MIN_TIME
from gatekey.v1 import (
    api_key_service_pb2,
    audit_service_pb2,
    member_service_pb2,
    product_service_pb2,
    tenant_service_pb2,
)

from tests.support.databases import Databases
from tests.support.server import PEPPERS, Client, ServerProcess, problem_of, read_example

TABLES = ("product", "tenant", "principal", "api_key", "secret", "key_usage", "audit_event")


@dataclass
class Shop:
    """A server, and a database where rows can be spoiled."""

    server: ServerProcess
    root: Client
    sql: "asyncpg.Connection[asyncpg.Record]"
    expected_failures: set[str] = field(default_factory=set)
    """What may be logged at the level of an error."""

    async def product(self, product: str) -> str:
        """Make a product like Heyoo with a tenant and its owner; answers the tenant's name."""
        spec = read_example("heyoo")
        spec.product, spec.secret_keys.prefix = product, f"{product}_"
        await self.root.apply(spec)
        return await self.tenant(product, "acme")

    async def tenant(self, product: str, tenant: str) -> str:
        """Make a tenant with an owner; answers its name."""
        name = await self.root.create_tenant(product, tenant)
        await self.root.add_member(name, "owner", "owner")
        return name

    async def fail(self, table: str, before: str, column: str, value: object) -> None:
        """Have the database refuse to write one row of a table."""
        await self.sql.execute(
            f"create or replace function refuse_{table}() returns trigger language plpgsql as"
            f" $$ begin if coalesce(old.{column}, new.{column})::text = '{value}'"
            f" then raise exception 'this one not'; end if; return coalesce(new, old); end $$;"
            f" create trigger refuse_{table} before {before} on {table} for each row execute function refuse_{table}()"
        )

    def failures(self) -> set[str]:
        """The events that were logged at the level of an error."""
        entries = [json.loads(line) for line in self.server.output if line.startswith("{")]
        return {entry["event"] for entry in entries if entry["level"] == "error"}


@pytest.fixture(scope="module")
async def shop(databases: Databases) -> AsyncIterator[Shop]:
    """A server that looks after its data all the time."""
    url, token = await databases.create(), new_secret("gk_")
    server = await ServerProcess.start(
        {
            "GATEKEY_DATABASE_URL": url,
            "GATEKEY_PEPPERS": PEPPERS,
            "GATEKEY_ROOT_TOKEN": token,
            "GATEKEY_MAINTENANCE_INTERVAL_S": "0.2",
            "GATEKEY_USAGE_FLUSH_S": "0.2",
            "GATEKEY_TENANT_RETENTION_DAYS": "0",
            "GATEKEY_KEY_RETENTION_DAYS": "0",
        }
    )
    root, sql = Client(server.address, token), await asyncpg.connect(url)
    await sql.execute("alter table audit_event disable trigger user")
    shop = Shop(server, root, sql)
    yield shop
    await sql.close()
    await root.close()
    assert await server.stop() == 0
    assert shop.failures() <= shop.expected_failures


async def gone(sql: "asyncpg.Connection[asyncpg.Record]", question: str, *values: object) -> None:
    """Wait until a question is answered by nothing."""
    async with asyncio.timeout(20):
        while await sql.fetchval(question, *values):
            await asyncio.sleep(0.05)


# ---------------------------------------------------------------- maintenance


async def test_a_tenant_that_cannot_be_purged_keeps_no_other(shop: Shop) -> None:
    await shop.product("purged")
    names = [await shop.tenant("purged", f"t{number}") for number in range(3)]
    await shop.fail("tenant", "delete", "tenant_id", "t0")
    shop.expected_failures.add("maintenance.failed")
    for name in names:
        await shop.root.tenants.DeleteTenant(tenant_service_pb2.DeleteTenantRequest(name=name), timeout=10)
    question = "select count(*) from tenant where tenant_id = any($1)"
    await gone(shop.sql, question, ["t1", "t2"])
    assert await shop.sql.fetchval(question, ["t0"]) == 1
    # The next round tries again.
    await shop.sql.execute("drop trigger refuse_tenant on tenant")
    await gone(shop.sql, question, ["t0"])


async def test_a_principal_that_cannot_be_purged_keeps_no_other(shop: Shop) -> None:
    tenant, uids = await shop.product("people"), []
    for member in ("m0", "m1", "m2"):
        await shop.root.add_member(tenant, member, "member")
        await shop.root.create_key(tenant, f"{tenant}/members/{member}", mode="ALL")
        uids.append(await shop.sql.fetchval("select max(principal_uid) from principal"))
    await shop.fail("principal", "delete", "principal_uid", uids[0])
    shop.expected_failures.add("maintenance.failed")
    for member in ("m0", "m1", "m2"):
        request = member_service_pb2.RemoveMemberRequest(name=f"{tenant}/members/{member}")
        await shop.root.members.RemoveMember(request, timeout=10)
    question = "select count(*) from principal where principal_uid = any($1)"
    await gone(shop.sql, question, uids[1:])
    assert await shop.sql.fetchval(question, uids[:1]) == 1
    await shop.sql.execute("drop trigger refuse_principal on principal")
    await gone(shop.sql, question, uids[:1])


async def test_a_product_that_cannot_be_purged_keeps_no_other(shop: Shop) -> None:
    products = [f"gone{number}" for number in range(3)]
    for product in products:
        await shop.product(product)
    await shop.fail("product", "delete", "product_id", products[0])
    shop.expected_failures |= {"maintenance.failed", "product.not_purged"}
    request = product_service_pb2.DeleteProductRequest(name=f"products/{products[0]}", force=True)
    assert (await shop.root.products.DeleteProduct(request, timeout=10)).deleted.tenants == 1
    # Not by RPCs, which would begin to purge them by themselves.
    await shop.sql.execute("update product set delete_time = now() where product_id = any($1)", products[1:])
    question = "select count(*) from product where product_id = any($1)"
    await gone(shop.sql, question, products[1:])
    assert await shop.sql.fetchval(question, products[:1]) == 1
    await shop.sql.execute("drop trigger refuse_product on product")
    await gone(shop.sql, question, products[:1])


async def test_a_key_that_cannot_be_purged_keeps_no_other(shop: Shop) -> None:
    tenant = await shop.product("keys")
    keys = [(await shop.root.create_key(tenant, f"{tenant}/members/owner", mode="ALL")).api_key for _ in range(3)]
    uids = [parse_key_id(key.name.rpartition("/")[2]) for key in keys]
    await shop.fail("api_key", "delete", "key_uid", uids[0])
    shop.expected_failures.add("maintenance.failed")
    for key in keys:
        await shop.root.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=key.name), timeout=10)
    question = "select count(*) from api_key where key_uid = any($1)"
    await gone(shop.sql, question, uids[1:])
    assert await shop.sql.fetchval(question, uids[:1]) == 1
    await shop.sql.execute("drop trigger refuse_api_key on api_key")
    await gone(shop.sql, question, uids[:1])


async def test_a_use_that_cannot_be_written_keeps_no_other(shop: Shop) -> None:
    tenant = await shop.product("uses")
    keys = [await shop.root.create_key(tenant, f"{tenant}/members/owner", mode="ALL") for _ in range(4)]
    uids = [parse_key_id(key.api_key.name.rpartition("/")[2]) for key in keys]
    await shop.fail("key_usage", "insert or update", "key_uid", uids[1])
    shop.expected_failures.add("usage.not_written")
    for key in keys:
        assert await shop.root.verdict(key.secret, "campaigns", "read") == "ALLOWED"
    question = "select 3 - count(*) from key_usage where key_uid = any($1)"
    await gone(shop.sql, question, [uids[0], *uids[2:]])
    assert not await shop.sql.fetchval("select count(*) from key_usage where key_uid = $1", uids[1])
    assert await shop.root.verdict(keys[1].secret, "campaigns", "read") == "ALLOWED"


# ---------------------------------------------------------------- lists


async def test_a_time_that_python_has_not_harms_nobody(shop: Shop) -> None:
    root, sql = shop.root, shop.sql
    tenant = await shop.product("times")
    made = await root.create_key(tenant, f"{tenant}/members/owner", mode="ALL")
    key, fine = made.api_key.name, (await root.create_key(tenant, f"{tenant}/members/owner", mode="ALL")).api_key.name
    uid = parse_key_id(key.rpartition("/")[2])
    await shop.tenant("times", "other")
    where = "where tenant_uid = (select tenant_uid from tenant where product_id = 'times' and tenant_id = 'acme')"
    for time, read in (("20000-01-01", MAX_TIME), ("infinity", MAX_TIME), ("0044-03-15 BC", MIN_TIME)):
        await sql.execute(f"update tenant set create_time = '{time}' {where}")
        await sql.execute(f"update principal set create_time = '{time}' {where}")
        await sql.execute(f"update api_key set create_time = '{time}' where key_uid = $1", uid)
        await sql.execute(f"update secret set create_time = '{time}' where key_uid = $1", uid)
        await sql.execute(
            f"update product set create_time = '{time}', update_time = '{time}' where product_id = 'times'"
        )
        await sql.execute(f"update audit_event set event_time = '{time}' where product_id = 'times' and sequence = 2")

        listed = await root.keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest(parent=tenant), timeout=10)
        assert {each.name for each in listed.api_keys} == {key, fine}
        (spoiled,) = (each for each in listed.api_keys if each.name == key)
        assert spoiled.create_time.ToDatetime(UTC) == read
        assert spoiled.secrets[0].create_time.ToDatetime(UTC) == read
        people = await root.members.ListPeople(member_service_pb2.ListPeopleRequest(parent=tenant), timeout=10)
        assert people.people[0].member.create_time.ToDatetime(UTC) == read
        tenants = await root.tenants.ListTenants(tenant_service_pb2.ListTenantsRequest(parent="products/times"))
        assert {each.name.rpartition("/")[2] for each in tenants.tenants} == {"acme", "other"}
        products = await root.products.ListProducts(product_service_pb2.ListProductsRequest(), timeout=10)
        assert "products/times" in {product.name for product in products.products}
        request = audit_service_pb2.ListAuditEventsRequest(parent="products/times")
        assert (await root.audit.ListAuditEvents(request, timeout=10)).audit_events
        assert await root.verdict(made.secret, "campaigns", "read") == "ALLOWED"
    renamed = await root.keys.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(name=key), timeout=10)
    assert renamed.api_key.secrets[-1].create_time.ToDatetime(UTC).year == datetime.now(UTC).year


@pytest.mark.parametrize("damage", ['{"no": 1}', "[]", '{"product": 7, "roles": "x"}'])
async def test_a_spec_that_cannot_be_read_fails_alone(shop: Shop, damage: str) -> None:
    root, number = shop.root, len(damage)
    broken, fine = f"b{number}", f"f{number}"
    tenant = await shop.product(broken)
    key = await root.create_key(tenant, f"{tenant}/members/owner", mode="ALL")
    await shop.product(fine)
    await shop.sql.execute("update product set spec = $1 where product_id = $2", damage, broken)
    shop.expected_failures.add("product.unreadable")

    products: dict[str, product_service_pb2.Product] = {}
    request = product_service_pb2.ListProductsRequest(page_size=1)
    while not products or request.page_token:
        page = await root.products.ListProducts(request, timeout=10)
        products |= {product.name: product for product in page.products}
        request.page_token = page.next_page_token
    assert products[f"products/{fine}"].spec.product == fine
    assert not products[f"products/{broken}"].HasField("spec")
    assert products[f"products/{broken}"].etag

    spec = read_example("heyoo")
    spec.product, spec.secret_keys.prefix = broken, f"{broken}_"
    for call in (
        root.products.GetProduct(product_service_pb2.GetProductRequest(name=f"products/{broken}"), timeout=10),
        root.create_tenant(broken, "new"),
        root.create_key(tenant, f"{tenant}/members/owner", mode="ALL"),
        root.apply(spec),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            await call
        assert problem_of(raised.value).reason == "STORED_DATA_UNREADABLE"
        assert f"products/{broken}" in problem_of(raised.value).message
    await root.apply(spec, force=True)
    assert await root.verdict(key.secret, "campaigns", "read") == "ALLOWED"
    got = await root.products.GetProduct(product_service_pb2.GetProductRequest(name=f"products/{broken}"), timeout=10)
    assert got.spec.product == broken


@pytest.mark.parametrize("damage", ["[1]", "7", '"x"', f'{{"a": {"9" * 400}}}', f'{{"a": {"9" * 5000}}}'])
async def test_an_event_that_cannot_be_read_is_listed_beside_the_others(shop: Shop, damage: str) -> None:
    product = f"e{sum(map(ord, damage))}"
    await shop.product(product)
    await shop.sql.execute("update audit_event set after = $1 where product_id = $2 and sequence = 2", damage, product)
    shop.expected_failures.add("audit_event.unreadable")
    request = audit_service_pb2.ListAuditEventsRequest(parent=f"products/{product}/tenants/acme")
    events = (await shop.root.audit.ListAuditEvents(request, timeout=10)).audit_events
    assert [event.sequence for event in events] == [*range(1, len(events) + 1)]
    assert not any(value.WhichOneof("kind") != "null_value" for value in events[1].after.fields.values())
    assert events[0].after.fields
