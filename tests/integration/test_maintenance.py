"""What happens to keys and tenants with time: last use, purges, and deletions of large tenants."""

import asyncio
import os
import statistics
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime

import asyncpg
import grpc
import pytest
from gatekey.core.names import parse_key_id
from gatekey.core.secrets import new_secret
from gatekey.v1 import api_key_service_pb2, audit_service_pb2, machine_user_service_pb2, tenant_service_pb2

from tests.support.databases import Databases
from tests.support.server import PEPPERS, Client, ServerProcess, problem_of, read_example

# By hand: GATEKEY_TEST_LARGE_TENANT_KEYS=200000 pytest -s -k large_tenant
LARGE_TENANT_KEYS = int(os.environ.get("GATEKEY_TEST_LARGE_TENANT_KEYS", "20000"))


@dataclass(frozen=True)
class Service:
    """A server of the test's own, with a client and a connection to its database."""

    server: ServerProcess
    client: Client
    sql: "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def service(databases: Databases) -> AsyncIterator[Service]:
    """A server that looks after its data all the time."""
    url, token = await databases.create(), new_secret("gk_")
    server = await ServerProcess.start(
        {
            "GATEKEY_DATABASE_URL": url,
            "GATEKEY_PEPPERS": PEPPERS,
            "GATEKEY_ROOT_TOKEN": token,
            "GATEKEY_MAINTENANCE_INTERVAL_S": "0.2",
            "GATEKEY_USAGE_FLUSH_S": "600",
            "GATEKEY_TENANT_RETENTION_DAYS": "0",
            "GATEKEY_KEY_RETENTION_DAYS": "1",
        }
    )
    client, sql = Client(server.address, token), await asyncpg.connect(url)
    await client.apply(read_example("heyoo"))
    yield Service(server, client, sql)
    await sql.close()
    await client.close()
    assert await server.stop() == 0


async def last_use(client: Client, name: str) -> float:
    """When a key was last used, in seconds since 1970; 0 if never."""
    key = await client.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=name))
    return float(key.last_use_time.ToMilliseconds() / 1000) if key.HasField("last_use_time") else 0


async def eventually(condition: object, timeout_s: float = 20) -> None:
    """Wait until a condition, given as an async function, holds."""
    assert callable(condition)
    end = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < end, "it did not come about"
        await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_the_first_use_is_written_at_once_and_later_ones_in_batches(service: Service, fresh_id: str) -> None:
    client = service.client
    tenant = await client.create_tenant("heyoo", fresh_id)
    owner = await client.add_member(tenant, "owner", "owner")
    created = await client.create_key(tenant, owner)
    name = created.api_key.name
    assert await last_use(client, name) == 0
    assert await client.verdict(created.secret, "nowhere", "read") == "RESOURCE_UNKNOWN"
    assert await client.verdict(created.secret, "tags", "read") == "ALLOWED"

    async def was_used() -> bool:
        return await last_use(client, name) > 0

    await eventually(was_used)
    first = await last_use(client, name)
    assert abs(first - datetime.now(UTC).timestamp()) < 20
    etag = (await client.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=name))).etag
    assert etag == created.api_key.etag
    await asyncio.sleep(0.1)
    assert await client.verdict(created.secret, "tags", "read") == "ALLOWED"
    assert await last_use(client, name) == first
    await service.server.stop()
    written = await service.sql.fetchval(
        "select extract(epoch from last_use_time)::float8 from key_usage join tenant using (tenant_uid)"
        " where tenant_id = $1",
        fresh_id,
    )
    assert written > first


async def test_a_deleted_tenant_is_purged_when_its_time_is_over(service: Service, fresh_id: str) -> None:
    client = service.client
    tenant = await client.create_tenant("heyoo", fresh_id)
    owner = await client.add_member(tenant, "owner", "owner")
    secret = (await client.create_key(tenant, owner)).secret
    await client.tenants.DeleteTenant(tenant_service_pb2.DeleteTenantRequest(name=tenant))

    async def gone() -> bool:
        return await client.verdict(secret, "tags", "read") == "KEY_UNKNOWN"

    await eventually(gone)
    with pytest.raises(grpc.RpcError) as raised:
        await client.tenants.UndeleteTenant(tenant_service_pb2.UndeleteTenantRequest(name=tenant))
    assert problem_of(raised.value).reason in {"TENANT_NOT_FOUND", "TENANT_PURGE_DUE"}

    async def free_again() -> bool:
        try:
            await client.create_tenant("heyoo", fresh_id)
        except grpc.RpcError as error:
            assert problem_of(error).reason == "TENANT_EXISTS"  # noqa: PT017 - the only error that may be
            return False
        return True

    await eventually(free_again)
    events = await client.audit.ListAuditEvents(audit_service_pb2.ListAuditEventsRequest(parent=tenant))
    assert [event.verb for event in events.audit_events] == [
        "CreateTenant",
        "AddMember",
        "CreateApiKey",
        "DeleteTenant",
        "PurgeTenant",
        "CreateTenant",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("column", ["revoke_time", "expire_time"])
async def test_ended_keys_are_purged_with_what_lives_only_by_them(service: Service, fresh_id: str, column: str) -> None:
    client = service.client
    tenant = await client.create_tenant("heyoo", fresh_id)
    machine = await client.create_key(tenant, new_machine_user=True)
    kept = await client.create_key(tenant, new_machine_user=True)
    for created, age in ((machine, "25 hours"), (kept, "23 hours")):
        changed = await service.sql.execute(
            f"update api_key set {column} = now() - $1::text::interval from principal"
            " where principal.principal_uid = api_key.principal_uid and principal_id = $2",
            age,
            created.machine_user.name.rpartition("/")[2],
        )
        assert changed == "UPDATE 1"

    async def purged() -> bool:
        try:
            await client.machine_users.GetMachineUser(
                machine_user_service_pb2.GetMachineUserRequest(name=machine.machine_user.name)
            )
        except grpc.RpcError as error:
            return problem_of(error).reason == "MACHINE_USER_NOT_FOUND"
        return False

    await eventually(purged)
    still = await client.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=kept.api_key.name))
    assert still.name == kept.api_key.name


@pytest.mark.slow
async def test_past_secrets_are_forgotten_when_their_time_is_over(service: Service, fresh_id: str) -> None:
    client = service.client
    tenant = await client.create_tenant("heyoo", fresh_id)
    owner = await client.add_member(tenant, "owner", "owner")
    forgotten, kept = [await client.create_key(tenant, owner) for _ in range(2)]
    for created in (forgotten, kept):
        await client.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=created.api_key.name))
    await service.sql.execute(
        "update past_secret set end_time = now() - case key_uid when $1 then interval '25 hours' else '23 hours' end",
        parse_key_id(forgotten.api_key.name.rpartition("/")[2]),
    )

    async def identified(secret: str) -> str:
        request = api_key_service_pb2.IdentifySecretRequest(secret=secret)
        try:
            return str((await client.keys.IdentifySecret(request)).name)
        except grpc.RpcError as error:
            assert problem_of(error).reason == "SECRET_NOT_FOUND"  # noqa: PT017 - the only error that may be
            return ""

    async def gone() -> bool:
        return not await identified(forgotten.secret)

    await eventually(gone)
    assert await identified(kept.secret) == kept.api_key.name


@pytest.mark.slow
async def test_a_large_tenant_is_deleted_in_short_transactions(service: Service, fresh_id: str) -> None:
    client, sql = service.client, service.sql
    tenant = await client.create_tenant("heyoo", fresh_id)
    owner = await client.add_member(tenant, "owner", "owner")
    secret = (await client.create_key(tenant, owner)).secret
    other = await client.create_tenant("heyoo", f"{fresh_id}x")
    others_key = (await client.create_key(other, await client.add_member(other, "owner", "owner"))).secret
    await sql.execute(
        f"""
        with made as (
            insert into api_key (tenant_uid, key_uid, principal_uid, display_name, kind, mode)
            select tenant_uid, gen_random_uuid(), principal_uid, 'Key', 'SECRET', 'ALL'
            from principal join tenant using (tenant_uid), generate_series(1, {LARGE_TENANT_KEYS})
            where tenant_id = $1
            returning tenant_uid, key_uid
        )
        insert into secret (tenant_uid, key_uid, slot, digest, pepper_version, hint)
        select tenant_uid, key_uid, 1, sha256(uuid_send(key_uid)), 1, 'hey_' from made
        """,
        fresh_id,
    )
    quiet_ms = [await timed_check(client, others_key) for _ in range(200)]
    began = time.monotonic()
    deleted = await client.tenants.DeleteTenant(tenant_service_pb2.DeleteTenantRequest(name=tenant))
    assert deleted.deleted.api_keys == LARGE_TENANT_KEYS + 1
    assert await client.verdict(secret, "tags", "read") == "TENANT_DELETED"
    longest_s, busy_ms = 0.0, []
    while await sql.fetchval("select exists (select 1 from tenant where tenant_id = $1)", fresh_id):
        assert time.monotonic() < began + 120, "the purge does not end"
        busy_ms.append(await timed_check(client, others_key))
        age_s = await sql.fetchval(
            "select coalesce(max(extract(epoch from now() - xact_start)), 0)::float8 from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid() and application_name = 'gatekey'"
        )
        longest_s = max(longest_s, age_s)
    assert longest_s < 1, "a transaction took longer than a second"
    print(  # noqa: T201 - for the run by hand
        f"purged {LARGE_TENANT_KEYS} keys in {time.monotonic() - began:.1f} s, longest transaction {longest_s:.3f} s;"
        f" check p50 {statistics.median(quiet_ms):.2f} ms before, {statistics.median(busy_ms):.2f} ms meanwhile"
    )


async def timed_check(client: Client, secret: str) -> float:
    """How long an allowed check takes, in ms."""
    began = time.perf_counter()
    assert await client.verdict(secret, "tags", "read") == "ALLOWED"
    return (time.perf_counter() - began) * 1000


@pytest.mark.slow
async def test_old_request_ids_are_forgotten(service: Service, fresh_id: str) -> None:
    request_id = uuid.uuid4()
    await service.client.tenants.CreateTenant(
        tenant_service_pb2.CreateTenantRequest(parent="products/heyoo", tenant_id=fresh_id, request_id=str(request_id))
    )
    await service.sql.execute("update mutation_request set create_time = now() - interval '25 hours'")

    async def forgotten() -> bool:
        return not await service.sql.fetchval(
            "select exists (select 1 from mutation_request where request_id = $1)", request_id
        )

    await eventually(forgotten)


@pytest.mark.slow
async def test_a_use_is_written_down_while_its_key_is_deleted(service: Service) -> None:
    tenant = await service.client.create_tenant("heyoo", "acme")
    owner = await service.client.add_member(tenant, "owner", "owner")
    keys = [await service.client.create_key(tenant, owner, name=name) for name in ("going", "staying")]
    async with service.sql.transaction():
        await service.sql.execute("delete from api_key where display_name = 'going'")
        for key in keys:
            assert await service.client.verdict(key.secret, "campaigns", "read") == "ALLOWED"
        await eventually(lambda: is_used(service.client, keys[1].api_key.name))
    await asyncio.sleep(0.2)
    assert service.server.process.returncode is None
    assert "background.failed" not in "".join(service.server.output)


async def is_used(client: Client, name: str) -> bool:
    """Whether a use of a key was written down."""
    return await last_use(client, name) > 0
