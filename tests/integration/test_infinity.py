"""Rows that hold infinity, or what makes no sense: repaired, refused, and where they are met all the same, harmless."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import gatekey
import grpc
import pytest
from gatekey.core.decisions import RULES
from gatekey.core.secrets import new_secret
from gatekey.core.times import MAX_TIME, MIN_TIME
from gatekey.v1 import api_key_service_pb2, audit_service_pb2, cache_service_pb2, check_service_pb2, tenant_service_pb2
from gatekey.v1.cache_service_pb2_grpc import CacheServiceStub
from gatekey_server.store import schema
from gatekey_server.store.queries import queries

from tests.support.databases import Databases, Sql
from tests.support.server import PEPPERS, Client, ServerProcess, problem_of, read_example

TOKEN = new_secret("gk_")
COLUMNS = [
    ("api_key", "expire_time"),
    ("secret", "expire_time"),
    ("tenant", "purge_time"),
    ("key_usage", "last_use_time"),
]
(MIGRATION,) = (
    path.name.partition("_")[0]
    for path in (Path(schema.__file__).parent / "migrations/versions").glob("*_finite_times.py")
)


def test_the_bounds_in_sql_are_those_of_the_code() -> None:
    for bound in (MIN_TIME, MAX_TIME):
        assert f"'{bound.strftime('%Y-%m-%dT%H:%M:%SZ')}'" in queries.snapshots_by_digest.sql


# ---------------------------------------------------------------- the schema

_ROWS = """
    insert into pepper values (1, decode(repeat('00', 16), 'hex'));
    insert into product (product_id, spec, spec_digest, spec_version, built_in)
        values ('p', '{}', decode(repeat('00', 32), 'hex'), 1, false);
    insert into tenant (product_id, tenant_id, display_name)
        select 'p', 't' || n, '' from generate_series(1, 1100) as n;
    insert into api_key (tenant_uid, key_uid, display_name, kind)
        select tenant_uid, gen_random_uuid(), 'k', 'PUBLISHABLE' from tenant;
    insert into secret (tenant_uid, key_uid, slot, digest, pepper_version, hint)
        select tenant_uid, key_uid, 1, sha256(key_uid::text::bytea), 1, 'h' from api_key;
    insert into key_usage select tenant_uid, key_uid, now() from api_key;
"""


async def test_the_migration_repairs_and_refuses(databases: Databases) -> None:
    url = await databases.create("template0")
    await schema.migrate(url, version=f"{int(MIGRATION) - 1:04}")
    sql = await asyncpg.connect(url)
    await sql.execute(_ROWS)
    for table, column in COLUMNS:
        values = "array['infinity', '9999-12-31', '9500-06-01', '2030-01-01', null]"
        if column == "last_use_time":
            values = "array['infinity', '-infinity', '9500-06-01', '2030-01-01']"
        await sql.execute(
            f"update {table} set {column} = ({values})[1 + tenant_uid % cardinality({values})]::timestamptz"
        )
    before = await sql.fetchval("select current from revision")
    await schema.migrate(url)
    for table, column in COLUMNS:
        found = {row["at"] for row in await sql.fetch(f"select distinct {column} as at from {table}")}
        expected = {MAX_TIME, datetime(9500, 6, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)}
        assert found == expected | ({MIN_TIME} if column == "last_use_time" else {None})
        for bad in ("infinity", "-infinity", "20000-01-01", "9999-12-31T23:59:59.999999Z"):
            with pytest.raises(asyncpg.CheckViolationError):
                await sql.execute(f"update {table} set {column} = '{bad}'")
    assert await sql.fetchval("select bool_and(convalidated) from pg_constraint where contype = 'c'")
    assert await sql.fetchval("select current from revision") > before, "processes hear of the repair"
    await sql.close()
    await schema.migrate(url)


# ---------------------------------------------------------------- the server


class Shop:
    """A server, two products and a database without the constraints."""

    def __init__(self, url: str, server: ServerProcess, root: Client, sql: Sql) -> None:
        self.url, self.server, self.root, self.sql = url, server, root, sql
        self.tenants: dict[str, str] = {}

    async def key(self, product: str, **options: str) -> api_key_service_pb2.CreateApiKeyResponse:
        """A new key of a product, which no server knows yet."""
        tenant = self.tenants[product]
        return await self.root.create_key(
            tenant, f"{tenant}/members/owner", name=uuid.uuid4().hex, mode="RESTRICTED", grants={"campaigns": ["read"]}
        )

    async def spoil(self, key: api_key_service_pb2.CreateApiKeyResponse, what: str) -> None:
        """Change the row of a key by hand."""
        await self.sql.execute(f"update api_key set {what} where display_name = $1", key.api_key.display_name)


@pytest.fixture(scope="module")
async def shop(databases: Databases) -> AsyncIterator[Shop]:
    """The server and what it knows."""
    url = await databases.create()
    server = await ServerProcess.start(
        {
            "GATEKEY_DATABASE_URL": url,
            "GATEKEY_PEPPERS": PEPPERS,
            "GATEKEY_ROOT_TOKEN": TOKEN,
            "GATEKEY_MAINTENANCE_INTERVAL_S": "0.2",
            "GATEKEY_KEY_RETENTION_DAYS": "0",
            "GATEKEY_USAGE_FLUSH_S": "0.2",
        }
    )
    root, sql = Client(server.address, TOKEN), await asyncpg.connect(url)
    for table, column in COLUMNS:
        await sql.execute(f"alter table {table} drop constraint {table}_{column}_is_finite")
    shop = Shop(url, server, root, sql)
    for product in ("heyoo", "other"):
        spec = read_example("heyoo")
        spec.product, spec.secret_keys.prefix = product, f"{product}_"
        await root.apply(spec)
        shop.tenants[product] = await root.create_tenant(product, "acme")
        await root.add_member(shop.tenants[product], "owner", "owner")
    yield shop
    await sql.close()
    await root.close()
    await server.stop()


async def reason_of(call: object) -> str:
    """The reason of a refusal."""
    with pytest.raises(grpc.RpcError) as raised:
        await call  # type: ignore[misc]
    return problem_of(raised.value).reason


async def test_an_infinite_expiry_harms_nobody(shop: Shop) -> None:
    root = shop.root
    endless, ended = await shop.key("heyoo"), await shop.key("heyoo")
    await shop.spoil(endless, "expire_time = 'infinity'")
    await shop.spoil(ended, "expire_time = '-infinity'")
    await shop.sql.execute("update secret set expire_time = 'infinity', create_time = '-infinity'")
    await shop.sql.execute("update key_usage set last_use_time = 'infinity'")
    name = endless.api_key.name

    assert await root.verdict(endless.secret, "campaigns", "read") == "ALLOWED"
    got = await root.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=name), timeout=10)
    assert got.expire_time.ToDatetime(UTC) == MAX_TIME
    parent = shop.tenants["heyoo"]
    await root.keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest(parent=parent), timeout=10)
    await root.keys.IdentifySecret(api_key_service_pb2.IdentifySecretRequest(secret=endless.secret), timeout=10)
    stub = CacheServiceStub(root.channel)
    resolved = await stub.Resolve(cache_service_pb2.ResolveRequest(keys=[endless.secret], rules=RULES))
    assert resolved.results[0].key.expire_time.ToDatetime(UTC) == MAX_TIME
    await root.keys.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(name=name), timeout=10)
    await root.audit.ListAuditEvents(audit_service_pb2.ListAuditEventsRequest(parent=parent), timeout=10)
    await root.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=name), timeout=10)
    # What has ended for ever is purged, and what else has.
    async with asyncio.timeout(10):
        while await shop.sql.fetchval(
            "select count(*) from api_key where display_name = any($1)",
            [endless.api_key.display_name, ended.api_key.display_name],
        ):
            await asyncio.sleep(0.1)
    request = tenant_service_pb2.CreateTenantRequest(parent="products/heyoo", tenant_id="endless")
    tenant = (await root.tenants.CreateTenant(request)).name
    await root.tenants.DeleteTenant(tenant_service_pb2.DeleteTenantRequest(name=tenant), timeout=10)
    await shop.sql.execute("update tenant set purge_time = 'infinity' where tenant_id = 'endless'")
    found = await root.tenants.GetTenant(tenant_service_pb2.GetTenantRequest(name=tenant))
    assert found.purge_time.ToDatetime(UTC) == MAX_TIME
    assert not [line for line in shop.server.output if "failed" in line]


@pytest.mark.parametrize(
    "damage", ["grants = '{\"no\": 1}'", 'grants = \'[{"resource": 7, "actions": "x"}]\''], ids=["object", "types"]
)
async def test_a_row_that_cannot_be_read_fails_alone(shop: Shop, damage: str) -> None:
    root = shop.root
    broken = await shop.key("heyoo")
    await shop.spoil(broken, damage)
    others = [await shop.key("other") for _ in range(48)]

    def check_all(keys: list[str]) -> list[str]:
        with gatekey.Client(shop.server.address, token=TOKEN, insecure=True) as client:
            return [client.check(key, "campaigns", "read").reason for key in keys]

    stop = asyncio.Event()

    async def disturb() -> int:
        count = 0
        while not stop.is_set():
            reasons = await asyncio.gather(
                *(reason_of(root.check(broken.secret, "campaigns", "read")) for _ in range(4))
            )
            assert set(reasons) == {"STORED_DATA_UNREADABLE"}
            count += 1
        return count

    disturbing = asyncio.create_task(disturb())
    await asyncio.sleep(0.05)
    # Cold ones, of another product, which share loads with the broken one.
    with ThreadPoolExecutor(6) as threads:
        loop = asyncio.get_running_loop()
        parts = [[key.secret for key in others[number::6]] for number in range(6)]
        found = await asyncio.gather(*(loop.run_in_executor(threads, check_all, part) for part in parts))
    stop.set()
    assert await disturbing > 0
    assert {reason for part in found for reason in part} == {"ALLOWED"}

    fresh = await shop.key("other")
    batch = check_service_pb2.BatchCheckRequest(
        checks=[
            check_service_pb2.CheckRequest(key=key, resource=resource, action="read")
            for key, resource in ((broken.secret, "campaigns"), (fresh.secret, "campaigns"))
        ]
    )
    first, second = (await root.checks.BatchCheck(batch, timeout=10)).results
    assert first.error.reason == "STORED_DATA_UNREADABLE"
    assert second.response.allowed
    stub = CacheServiceStub(root.channel)
    keys = [broken.secret, (await shop.key("other")).secret]
    damaged, sound = (await stub.Resolve(cache_service_pb2.ResolveRequest(keys=keys, rules=RULES))).results
    assert (damaged.unreadable, damaged.HasField("key")) == (True, False)
    assert sound.HasField("key")
    # It is listed and can be revoked.
    parent = shop.tenants["heyoo"]
    listed = await root.keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest(parent=parent, page_size=1000))
    assert broken.api_key.name in {key.name for key in listed.api_keys}
    await root.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=broken.api_key.name), timeout=10)
