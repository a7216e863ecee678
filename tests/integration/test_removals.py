"""Members and machine users that are removed with any number of keys: at once, and their rows in steps."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import asyncpg
import grpc
import pytest
from gatekey.core.secrets import new_secret
from gatekey.v1 import (
    api_key_service_pb2,
    audit_service_pb2,
    machine_user_service_pb2,
    member_service_pb2,
    product_service_pb2,
    product_spec_pb2,
    tenant_service_pb2,
)

from tests.support.databases import Databases
from tests.support.orphans import OrphanCheck
from tests.support.server import PEPPERS, Client, ServerProcess, as_json, problem_of, read_example

# By hand: GATEKEY_TEST_LARGE_MEMBER_KEYS=800000 pytest -s -k large_member
LARGE_MEMBER_KEYS = int(os.environ.get("GATEKEY_TEST_LARGE_MEMBER_KEYS", "5000"))
LARGE_PRODUCT_TENANTS = int(os.environ.get("GATEKEY_TEST_LARGE_PRODUCT_TENANTS", "500"))
NEVER_S, ALWAYS_S = "86400", "0.2"


@dataclass
class Service:
    """A server that purges nothing, a client of it, and its database."""

    url: str
    token: str
    server: ServerProcess
    client: Client
    sql: "asyncpg.Connection[asyncpg.Record]"

    async def start(self, maintenance_s: str = ALWAYS_S) -> ServerProcess:
        """Start another server."""
        return await start(self.url, self.token, maintenance_s)

    async def removed(self) -> int:
        """How many principals wait to be purged."""
        return int(await self.sql.fetchval("select count(*) from principal where remove_time is not null"))

    async def revision(self) -> int:
        """The newest revision."""
        return int(await self.sql.fetchval("select current from revision"))


async def start(url: str, token: str, maintenance_s: str) -> ServerProcess:
    return await ServerProcess.start(
        {
            "GATEKEY_DATABASE_URL": url,
            "GATEKEY_PEPPERS": PEPPERS,
            "GATEKEY_ROOT_TOKEN": token,
            "GATEKEY_MAINTENANCE_INTERVAL_S": maintenance_s,
            "GATEKEY_USAGE_FLUSH_S": "600",
        }
    )


@pytest.fixture(scope="module")
async def service(databases: Databases) -> AsyncIterator[Service]:
    url, token = await databases.create(), new_secret("gk_")
    server = await start(url, token, NEVER_S)
    client, sql = Client(server.address, token), await asyncpg.connect(url)
    for product in ("heyoo", "tally"):
        await client.apply(read_example(product))
    yield Service(url, token, server, client, sql)
    async with OrphanCheck.open(url) as orphans:
        await orphans.assert_none()
    await sql.close()
    await client.close()
    assert await server.stop() == 0


async def fill(service: Service, tenant: str, principal: str, keys: int) -> None:
    """Give a principal many keys, as `CreateApiKey` leaves them."""
    for _ in range(0, keys, 100_000):
        await service.sql.execute(
            """
            with made as (
                insert into api_key (tenant_uid, key_uid, principal_uid, display_name, kind, mode)
                select tenant_uid, gen_random_uuid(), principal_uid, 'Key', 'SECRET', 'ALL'
                from principal join tenant using (tenant_uid), generate_series(1, $3::int)
                where tenant_id = $1 and principal_id = $2
                returning tenant_uid, key_uid
            ),
            used as (
                insert into secret (tenant_uid, key_uid, slot, digest, pepper_version, hint)
                select tenant_uid, key_uid, 1, sha256(uuid_send(key_uid)), 1, 'hey_' from made
            )
            select count(*) from made
            """,
            tenant,
            principal,
            min(keys, 100_000),
            timeout=120,
        )
    await service.sql.execute(
        "insert into key_usage select tenant_uid, key_uid, now() from api_key on conflict do nothing"
    )


async def eventually(condition: Callable[[], object], timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not await condition():  # type: ignore[misc]
        assert time.monotonic() < end, "it did not come about"
        await asyncio.sleep(0.05)


async def reason_of(call: object) -> str:
    with pytest.raises(grpc.RpcError) as raised:
        await call  # type: ignore[misc]
    return problem_of(raised.value).reason


async def all_keys(client: Client, tenant: str, size: int = 50) -> list[str]:
    """The names of all keys of a tenant, page by page."""
    names: list[str] = []
    token = ""
    while True:
        request = api_key_service_pb2.ListApiKeysRequest(parent=tenant, page_size=size, page_token=token)
        page = await client.keys.ListApiKeys(request, timeout=20)
        names += [key.name for key in page.api_keys]
        token = page.next_page_token
        if not token:
            return names


async def test_nothing_of_a_removed_member_counts_before_anything_is_purged(service: Service, fresh_id: str) -> None:
    client = service.client
    tenant = await client.create_tenant("heyoo", fresh_id)
    await client.add_member(tenant, "boss", "owner")
    member = await client.add_member(tenant, "going", "owner")
    kept = await client.create_key(tenant, f"{tenant}/members/boss")
    gone = await client.create_key(tenant, member)
    await fill(service, fresh_id, "going", 300)
    key, secret = gone.api_key.name, gone.secret
    assert await client.verdict(secret, "tags", "read") == "ALLOWED"
    before = await service.revision()
    response = await client.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=member))
    assert (response.deleted.members, response.deleted.api_keys) == (1, 301)
    assert await service.revision() == before + 1
    assert await service.sql.fetchval("select count(*) from change where revision = $1", before + 1) == 1
    # Its keys are unknown, to checks and to everybody who asks for them; whose a secret was can still be told.
    assert await client.verdict(secret, "tags", "read") == "KEY_UNKNOWN"
    identify = api_key_service_pb2.IdentifySecretRequest(secret=secret)
    identified = await client.keys.IdentifySecret(identify)
    assert (identified.name, identified.state) == (key, api_key_service_pb2.ApiKey.STATE_DELETED)
    for call in (
        client.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=key)),
        client.keys.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(name=key)),
        client.keys.EnableApiKey(api_key_service_pb2.EnableApiKeyRequest(name=key)),
        client.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=key)),
    ):
        assert await reason_of(call) == "API_KEY_NOT_FOUND"
    assert await all_keys(client, tenant, 10) == [kept.api_key.name]
    # Neither is it there itself.
    get = member_service_pb2.GetMemberRequest(name=member)
    assert await reason_of(client.members.GetMember(get)) == "MEMBER_NOT_FOUND"
    again = client.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=member))
    assert await reason_of(again) == "MEMBER_NOT_FOUND"
    people = await client.members.ListPeople(member_service_pb2.ListPeopleRequest(parent=tenant))
    assert ([person.member.name for person in people.people], people.user_count) == ([f"{tenant}/members/boss"], 1)
    last = client.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=f"{tenant}/members/boss"))
    assert await reason_of(last) == "LAST_OWNER"
    deleted = await client.tenants.DeleteTenant(tenant_service_pb2.DeleteTenantRequest(name=tenant, validate_only=True))
    assert (deleted.deleted.members, deleted.deleted.api_keys) == (1, 1)
    # Its id is free, and whoever has it next has none of the keys.
    assert await client.add_member(tenant, "going", "member") == member
    new = await client.create_key(tenant, member)
    assert await client.verdict(new.secret, "tags", "read") == "ALLOWED"
    assert await client.verdict(secret, "tags", "read") == "KEY_UNKNOWN"
    assert await all_keys(client, tenant) == [kept.api_key.name, new.api_key.name]
    events = await client.audit.ListAuditEvents(
        audit_service_pb2.ListAuditEventsRequest(parent=tenant, verb="RemoveMember")
    )
    told = as_json(events.audit_events[0].before)
    assert (told["display_name"], told["role"], told["api_key_count"]) == ("", "owner", 301)
    assert len(told["api_keys"]) == 100


async def test_a_removed_machine_user_is_gone_and_its_token_with_it(service: Service) -> None:
    client, system = service.client, "products/gatekey/tenants/system"
    created = await client.create_key(
        system, name="Token", mode="RESTRICTED", grants={"products/heyoo": ["get"]}, new_machine_user=True
    )
    token = client.with_token(created.secret)
    await token.products.GetProduct(product_service_pb2.GetProductRequest(name="products/heyoo"))
    await client.machine_users.DeleteMachineUser(
        machine_user_service_pb2.DeleteMachineUserRequest(name=created.machine_user.name)
    )
    assert (
        await reason_of(token.products.GetProduct(product_service_pb2.GetProductRequest(name="products/heyoo")))
        == "TOKEN_INVALID"
    )
    await token.close()


async def test_the_keys_of_removed_members_do_not_count_towards_the_limit(service: Service, fresh_id: str) -> None:
    client = service.client
    spec = read_example("tally")
    spec.product, spec.limits.api_keys = f"p{fresh_id}", 5
    spec.secret_keys.prefix = f"{fresh_id}_"
    if spec.HasField("publishable_keys"):
        spec.publishable_keys.prefix = f"{fresh_id}pub_"
    await client.apply(spec)
    tenant = await client.create_tenant(spec.product, "acme")
    role = spec.roles[0].role
    for round_ in range(3):
        member = await client.add_member(tenant, f"m{round_}", role)
        for number in range(4):
            await client.create_key(tenant, member, name=f"{number}", mode="ALL")
        await client.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=member, force=True))
    member = await client.add_member(tenant, "last", role)
    for number in range(5):
        await client.create_key(tenant, member, name=f"{number}", mode="ALL")
    assert await reason_of(client.create_key(tenant, member, mode="ALL")) == "LIMIT_REACHED"


@pytest.mark.slow
async def test_a_large_member_is_removed_at_once_and_purged_without_a_trace(service: Service, fresh_id: str) -> None:
    client = service.client
    tenant = await client.create_tenant("heyoo", fresh_id)
    member = await client.add_member(tenant, "robot", "owner")
    secret = (await client.create_key(tenant, member)).secret
    await fill(service, fresh_id, "robot", LARGE_MEMBER_KEYS)
    other = await client.create_tenant("heyoo", f"{fresh_id}x")
    others_key = (await client.create_key(other, await client.add_member(other, "owner", "owner"))).secret
    began = time.monotonic()
    response = await client.members.RemoveMember(
        member_service_pb2.RemoveMemberRequest(name=member, force=True), timeout=10
    )
    removed_s = time.monotonic() - began
    assert response.deleted.api_keys == min(LARGE_MEMBER_KEYS + 1, 100_000)
    assert await client.verdict(secret, "tags", "read") == "KEY_UNKNOWN"
    assert await all_keys(client, tenant, 1000) == []
    revision, began = await service.revision(), time.monotonic()
    # Killed in the middle, and two at once after that.
    killed = await service.start()
    rows = "select count(*) from api_key join tenant using (tenant_uid) where tenant_id = $1"

    async def some_are_gone() -> bool:
        return int(await service.sql.fetchval(rows, fresh_id)) <= LARGE_MEMBER_KEYS - 1000

    await eventually(some_are_gone)
    await killed.kill()
    assert await service.removed() > 0
    took: list[float] = []

    async def check() -> None:
        while True:
            asked = time.perf_counter()
            assert await client.verdict(others_key, "tags", "read") == "ALLOWED"
            took.append(time.perf_counter() - asked)

    checking = asyncio.create_task(check())
    servers = [await service.start() for _ in range(2)]

    async def all_are_gone() -> bool:
        return not await service.removed()

    await eventually(all_are_gone, 600)
    assert not checking.done()
    checking.cancel()
    assert await service.sql.fetchval(rows, fresh_id) == 0
    # A purge that changes no decision makes nobody forget anything.
    assert await service.revision() == revision
    for server in servers:
        assert await server.stop() == 0
        assert "background.failed" not in "".join(server.output)
    print(  # noqa: T201 - for the run by hand
        f"{LARGE_MEMBER_KEYS} keys: removed in {removed_s * 1e3:.0f} ms, purged in {time.monotonic() - began:.1f} s;"
        f" check p99 meanwhile {sorted(took)[int(len(took) * 0.99)] * 1e3:.1f} ms"
    )
    assert removed_s < 0.5


@pytest.mark.slow
async def test_a_large_product_is_deleted_at_once_and_purged_by_maintenance(service: Service, fresh_id: str) -> None:
    """By hand: GATEKEY_TEST_LARGE_PRODUCT_TENANTS=1000 pytest -s -k large_product."""
    client = service.client
    spec = own_spec(fresh_id)
    name = f"products/{spec.product}"
    await client.apply(spec)
    tenant = await client.create_tenant(spec.product, "acme")
    key = await client.create_key(tenant, await client.add_member(tenant, "ann", spec.roles[0].role), mode="ALL")
    assert await client.verdict(key.secret, "forms", "read") == "ALLOWED"
    await service.sql.execute(FILL_PRODUCT, spec.product, LARGE_PRODUCT_TENANTS, timeout=120)
    other = await client.create_tenant("heyoo", f"{fresh_id}x")
    others = await client.create_key(other, await client.add_member(other, "owner", "owner"))
    before, began = await service.revision(), time.monotonic()
    request = product_service_pb2.DeleteProductRequest(name=name, force=True)
    deleted = (await client.products.DeleteProduct(request, timeout=60)).deleted
    deleted_s = time.monotonic() - began
    assert (deleted.tenants, deleted.api_keys) == (
        LARGE_PRODUCT_TENANTS + 1,
        min(LARGE_PRODUCT_TENANTS * 100 + 1, 100_000),
    )
    # One change for everyone, and nothing of it is there any more.
    assert await service.revision() == before + 1
    assert await client.verdict(key.secret, "forms", "read") == "KEY_UNKNOWN"
    for call, reason in (
        (client.products.GetProduct(product_service_pb2.GetProductRequest(name=name)), "PRODUCT_NOT_FOUND"),
        (client.products.DeleteProduct(request), "PRODUCT_NOT_FOUND"),
        (client.tenants.GetTenant(tenant_service_pb2.GetTenantRequest(name=tenant)), "PRODUCT_NOT_FOUND"),
        (client.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=key.api_key.name)), "PRODUCT_NOT_FOUND"),
        (client.create_tenant(spec.product, "new"), "PRODUCT_NOT_FOUND"),
        (client.apply(spec), "PRODUCT_BEING_PURGED"),
    ):
        assert await reason_of(call) == reason
    products = await client.products.ListProducts(product_service_pb2.ListProductsRequest())
    assert name not in {product.name for product in products.products}
    identified = await client.keys.IdentifySecret(api_key_service_pb2.IdentifySecretRequest(secret=key.secret))
    assert (identified.name, identified.state) == (key.api_key.name, api_key_service_pb2.ApiKey.STATE_DELETED)
    # The previous release does not look at `delete_time`, and finds nothing that could be allowed.
    stored = "select spec -> 'collections' = '[]' from product where product_id = $1"
    assert await service.sql.fetchval(stored, spec.product)
    # Its prefixes are free.
    spec.product = f"{spec.product}-2"
    await client.apply(spec)
    took: list[float] = []

    async def use() -> None:
        while True:
            asked = time.perf_counter()
            assert await client.verdict(others.secret, "tags", "read") == "ALLOWED"
            await client.keys.DisableApiKey(api_key_service_pb2.DisableApiKeyRequest(name=others.api_key.name))
            await client.keys.EnableApiKey(api_key_service_pb2.EnableApiKeyRequest(name=others.api_key.name))
            took.append(time.perf_counter() - asked)

    using = asyncio.create_task(use())

    async def is_used() -> bool:
        return bool(took)

    async def is_gone() -> bool:
        return not await service.sql.fetchval("select count(*) from product where delete_time is not null")

    await eventually(is_used)
    began = time.monotonic()
    servers = [await service.start() for _ in range(2)]

    await eventually(is_gone, 600)
    assert not using.done()
    using.cancel()
    for server in servers:
        assert await server.stop() == 0
        assert "maintenance.failed" not in "".join(server.output)
    print(  # noqa: T201 - for the run by hand
        f"{LARGE_PRODUCT_TENANTS} tenants: deleted in {deleted_s * 1e3:.0f} ms, purged in"
        f" {time.monotonic() - began:.1f} s; a check and two changes of another product meanwhile:"
        f" p50 {sorted(took)[len(took) // 2] * 1e3:.0f} ms, max {max(took) * 1e3:.0f} ms"
    )
    assert await service.sql.fetchval("select count(*) from tenant where product_id = $1", name.split("/")[1]) == 0
    spec.product, spec.secret_keys.prefix = name.split("/")[1], f"{fresh_id}b_"
    assert (await client.apply(spec)).spec_version == 1


async def test_the_purge_of_a_tenant_makes_nobody_forget_anything(service: Service, fresh_id: str) -> None:
    client = service.client
    tenant = await client.create_tenant("heyoo", fresh_id)
    await client.add_member(tenant, "robot", "owner")
    await fill(service, fresh_id, "robot", 300)
    await client.tenants.DeleteTenant(tenant_service_pb2.DeleteTenantRequest(name=tenant))
    await service.sql.execute("update tenant set purge_time = now() where tenant_id = $1", fresh_id)
    before = await service.revision()
    server = await service.start()

    async def is_gone() -> bool:
        return not await service.sql.fetchval("select count(*) from tenant where tenant_id = $1", fresh_id)

    await eventually(is_gone)
    assert await server.stop() == 0
    # The tenant itself.
    assert await service.revision() == before + 1


def own_spec(fresh_id: str) -> product_spec_pb2.ProductSpec:
    """A spec like Tally's."""
    spec = read_example("tally")
    spec.product, spec.secret_keys.prefix = f"p{fresh_id}", f"{fresh_id}_"
    return spec


FILL_PRODUCT = """
with made as (
    insert into tenant (product_id, tenant_id, display_name)
    select $1, 't' || n, '' from generate_series(1, $2::int) n
    returning tenant_uid
),
people as (
    insert into principal (tenant_uid, kind, principal_id, role, display_name)
    select tenant_uid, 'MEMBER', 'ann', 'owner', '' from made
    returning tenant_uid, principal_uid
),
keys as (
    insert into api_key (tenant_uid, key_uid, principal_uid, display_name, kind, mode)
    select tenant_uid, gen_random_uuid(), principal_uid, 'Key', 'SECRET', 'ALL' from people, generate_series(1, 100)
    returning tenant_uid, key_uid
),
secrets as (
    insert into secret (tenant_uid, key_uid, slot, digest, pepper_version, hint)
    select tenant_uid, key_uid, 1, sha256(uuid_send(key_uid)), 1, 'tly-' from keys
)
select count(*) from keys
"""
