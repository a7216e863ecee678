"""What a service token leaves behind ends with it: nothing outlives it, and nothing of it is committed after it."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from gatekey.core.names import parse_key_id
from gatekey.v1 import (
    api_key_service_pb2,
    machine_user_service_pb2,
    member_service_pb2,
    product_service_pb2,
    tenant_service_pb2,
    types_pb2,
)
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from tests.acceptance.test_audit import events
from tests.acceptance.test_products import own_spec
from tests.support.databases import Sql
from tests.support.server import Client, problem_of

SYSTEM = "products/gatekey/tenants/system"
ALL = types_pb2.ACCESS_MODE_ALL
RESTRICTED = types_pb2.ACCESS_MODE_RESTRICTED


async def reason_of(attempt: Awaitable[Any]) -> str:
    """Why a call was refused; empty if it was not."""
    try:
        await attempt
    except grpc.RpcError as error:
        return problem_of(error).reason
    return ""


@asynccontextmanager
async def holder_of(root: Client, token: api_key_service_pb2.CreateApiKeyResponse) -> AsyncIterator[Client]:
    """A client that has a token."""
    client = root.with_token(token.secret)
    try:
        yield client
    finally:
        await client.close()


def update(name: str, **fields: Any) -> api_key_service_pb2.UpdateApiKeyRequest:
    """A change of a key."""
    return api_key_service_pb2.UpdateApiKeyRequest(
        api_key=api_key_service_pb2.ApiKey(name=name, **fields), update_mask=FieldMask(paths=list(fields))
    )


# What an expiring caller may not leave behind


@pytest.fixture
async def temporary(root: Client) -> AsyncIterator[Client]:
    """The holder of a token that may do everything for an hour."""
    end = datetime.now(UTC) + timedelta(hours=1)
    async with holder_of(root, await root.create_key(SYSTEM, mode="ALL", new_machine_user=True, expire_time=end)) as it:
        yield it


async def make_token(root: Client, **fields: Any) -> str:
    """A token that may do little, and does not expire; answers its name."""
    grants = {"products/heyoo/checks": ["create"]}
    created = await root.create_key(SYSTEM, mode="RESTRICTED", grants=grants, new_machine_user=True, **fields)
    return created.api_key.name


async def test_an_expiring_token_gives_nothing_to_one_that_lives_longer(root: Client, temporary: Client) -> None:
    later = datetime.now(UTC) + timedelta(hours=2)
    for name in (await make_token(root), await make_token(root, expire_time=later)):
        before = await root.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=name))
        wide = [types_pb2.Grant(resource="products", actions=["*"])]
        for change in (
            update(name, mode=ALL),
            update(name, grants=wide),
            update(name, mode=RESTRICTED, grants=wide),
            update(name, grants=[*before.grants, types_pb2.Grant(resource="products/heyoo", actions=["get"])]),
        ):
            assert await reason_of(temporary.keys.UpdateApiKey(change)) == "TOKEN_EXCEEDS_CALLER"
        rotate = api_key_service_pb2.RotateApiKeyRequest(name=name)
        assert await reason_of(temporary.keys.RotateApiKey(rotate)) == "TOKEN_EXCEEDS_CALLER"
        disabled = await temporary.keys.DisableApiKey(api_key_service_pb2.DisableApiKeyRequest(name=name))
        enable = api_key_service_pb2.EnableApiKeyRequest(name=name)
        assert await reason_of(temporary.keys.EnableApiKey(enable)) == "TOKEN_EXCEEDS_CALLER"
        after = await root.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=name))
        assert (after.etag, after.grants, after.mode) == (disabled.etag, before.grants, before.mode)


async def test_an_expiring_token_extends_none_beyond_itself(root: Client, temporary: Client) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=30)
    name = await make_token(root, expire_time=soon)
    for change in (update(name, expire_time=None), update(name, expire_time=soon + timedelta(hours=1))):
        change.update_mask.CopyFrom(FieldMask(paths=["expire_time"]))
        assert await reason_of(temporary.keys.UpdateApiKey(change)) == "TOKEN_EXCEEDS_CALLER"
    # Within its own end it gives what it has.
    await temporary.keys.UpdateApiKey(update(name, mode=ALL, expire_time=soon + timedelta(minutes=10)))
    await temporary.keys.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(name=name))


async def test_an_expired_token_is_not_brought_back_for_longer_than_the_caller(
    root: Client, temporary: Client, sql: Sql
) -> None:
    name = await make_token(root)
    uid = parse_key_id(name.rpartition("/")[2])
    await sql.execute("update api_key set expire_time = now() - interval '1 minute' where key_uid = $1", uid)
    now = datetime.now(UTC)
    beyond = update(name, expire_time=now + timedelta(hours=2))
    assert await reason_of(temporary.keys.UpdateApiKey(beyond)) == "TOKEN_EXCEEDS_CALLER"
    assert await reason_of(temporary.keys.UpdateApiKey(update(name, expire_time=now + timedelta(minutes=5)))) == ""


async def test_an_expiring_token_may_take_away(root: Client, temporary: Client) -> None:
    wide = await root.create_key(SYSTEM, mode="ALL", new_machine_user=True)
    name = wide.api_key.name
    narrow = [types_pb2.Grant(resource="products/heyoo", actions=["get"])]
    assert (await temporary.keys.UpdateApiKey(update(name, display_name="Renamed"))).display_name == "Renamed"
    # From never to tomorrow is less than before, though it is beyond the caller's own end.
    sooner = await temporary.keys.UpdateApiKey(update(name, expire_time=datetime.now(UTC) + timedelta(days=1)))
    assert sooner.HasField("expire_time")
    assert (await temporary.keys.UpdateApiKey(update(name, mode=RESTRICTED, grants=narrow))).mode == RESTRICTED
    assert (await temporary.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=name))).state
    await temporary.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=name))


async def test_the_end_of_a_secret_in_its_grace_counts_too(root: Client) -> None:
    """The old secret of a token that never expires is itself over in an hour."""
    token = await root.create_key(SYSTEM, mode="ALL", new_machine_user=True)
    rotate = api_key_service_pb2.RotateApiKeyRequest(name=token.api_key.name)
    rotate.grace.FromTimedelta(timedelta(hours=1))
    await root.keys.RotateApiKey(rotate)
    async with holder_of(root, token) as old:
        assert await reason_of(old.keys.RotateApiKey(rotate)) == "TOKEN_EXCEEDS_CALLER"
        assert await reason_of(old.create_key(SYSTEM, mode="ALL", new_machine_user=True)) == "TOKEN_EXCEEDS_CALLER"


async def test_an_expiring_token_revives_no_tenant_of_tokens(root: Client, temporary: Client, fresh_id: str) -> None:
    tenant = await root.create_tenant("gatekey", fresh_id)
    await root.create_key(tenant, mode="ALL", new_machine_user=True)
    weak = await root.create_key(SYSTEM, grants={"products/gatekey": ["*"]}, new_machine_user=True)
    resume = tenant_service_pb2.ResumeTenantRequest(name=tenant)
    undelete = tenant_service_pb2.UndeleteTenantRequest(name=tenant)
    async with holder_of(root, weak) as weaker:
        await root.tenants.SuspendTenant(tenant_service_pb2.SuspendTenantRequest(name=tenant))
        for client in (temporary, weaker):
            assert await reason_of(client.tenants.ResumeTenant(resume)) == "TOKEN_EXCEEDS_CALLER"
        await root.tenants.DeleteTenant(tenant_service_pb2.DeleteTenantRequest(name=tenant))
        for client in (temporary, weaker):
            assert await reason_of(client.tenants.UndeleteTenant(undelete)) == "TOKEN_EXCEEDS_CALLER"
    await root.tenants.UndeleteTenant(undelete)
    await root.tenants.ResumeTenant(resume)


# Mutations in flight


Ending = Callable[[Client, str], Awaitable[Any]]


async def _narrow(root: Client, name: str) -> None:
    grants = [types_pb2.Grant(resource="products", actions=["get", "list"])]
    await root.keys.UpdateApiKey(update(name, mode=RESTRICTED, grants=grants))


async def _expire(root: Client, name: str) -> None:
    end = datetime.now(UTC) + timedelta(seconds=0.3)
    await root.keys.UpdateApiKey(update(name, expire_time=end))
    await asyncio.sleep((end - datetime.now(UTC)).total_seconds() + 0.01)


ENDINGS: Mapping[str, tuple[Ending, str]] = {
    "revoke": (
        lambda root, name: root.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=name)),
        "TOKEN_INVALID",
    ),
    "disable": (
        lambda root, name: root.keys.DisableApiKey(api_key_service_pb2.DisableApiKeyRequest(name=name)),
        "TOKEN_INVALID",
    ),
    "delete": (
        lambda root, name: root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=name)),
        "TOKEN_INVALID",
    ),
    "rotate": (
        lambda root, name: root.keys.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(name=name)),
        "TOKEN_INVALID",
    ),
    "narrow": (_narrow, "PERMISSION_MISSING"),
    "expire": (_expire, "TOKEN_INVALID"),
}


class Place:
    """A product of its own with a tenant, a member, a machine user and a key, and how much of it there is."""

    def __init__(self, product: str, tenant: str, key: str, machine_user: str) -> None:
        self.product, self.tenant, self.key, self.machine_user = product, tenant, key, machine_user
        self.member = f"{tenant}/members/owner"

    @classmethod
    async def make(cls, root: Client, product: str) -> "Place":
        await root.apply(own_spec(product))
        tenant = await root.create_tenant(product, "acme")
        await root.add_member(tenant, "owner", "owner")
        await root.add_member(tenant, "other", "owner")
        created = await root.create_key(tenant, new_machine_user=True)
        return cls(product, tenant, created.api_key.name, created.machine_user.name)

    def requests(self) -> Mapping[str, tuple[str, Message]]:
        """A mutation of every kind: the stub's name and the request."""
        spec = own_spec(self.product)
        spec.display_name = "Changed"
        mask = FieldMask(paths=["display_name"])
        keys, tenants, users = api_key_service_pb2, tenant_service_pb2, machine_user_service_pb2
        new = keys.ApiKey(display_name="New", owner=self.member)
        return {
            "CreateApiKey": ("keys", keys.CreateApiKeyRequest(parent=self.tenant, api_key=new)),
            "UpdateApiKey": ("keys", update(self.key, display_name="Changed")),
            "DisableApiKey": ("keys", keys.DisableApiKeyRequest(name=self.key)),
            "RotateApiKey": ("keys", keys.RotateApiKeyRequest(name=self.key)),
            "RevokeApiKey": ("keys", keys.RevokeApiKeyRequest(name=self.key)),
            "DeleteApiKey": ("keys", keys.DeleteApiKeyRequest(name=self.key)),
            "AddMember": (
                "members",
                member_service_pb2.AddMemberRequest(
                    parent=self.tenant, member_id="new", member=member_service_pb2.Member(role="owner")
                ),
            ),
            "UpdateMember": (
                "members",
                member_service_pb2.UpdateMemberRequest(
                    member=member_service_pb2.Member(name=self.member, display_name="Changed"), update_mask=mask
                ),
            ),
            "RemoveMember": ("members", member_service_pb2.RemoveMemberRequest(name=self.member)),
            "UpdateMachineUser": (
                "machine_users",
                users.UpdateMachineUserRequest(
                    machine_user=users.MachineUser(name=self.machine_user, display_name="Changed"), update_mask=mask
                ),
            ),
            "DeleteMachineUser": ("machine_users", users.DeleteMachineUserRequest(name=self.machine_user)),
            "UpdateTenant": (
                "tenants",
                tenants.UpdateTenantRequest(
                    tenant=tenants.Tenant(name=self.tenant, display_name="Changed"), update_mask=mask
                ),
            ),
            "SuspendTenant": ("tenants", tenants.SuspendTenantRequest(name=self.tenant)),
            "DeleteTenant": ("tenants", tenants.DeleteTenantRequest(name=self.tenant)),
            "CreateTenant": (
                "tenants",
                tenants.CreateTenantRequest(parent=f"products/{self.product}", tenant_id="new"),
            ),
            "ApplyProduct": ("products", product_service_pb2.ApplyProductRequest(spec=spec)),
            "DeleteProduct": (
                "products",
                product_service_pb2.DeleteProductRequest(name=f"products/{self.product}", force=True),
            ),
        }


async def wanted(sql: Any) -> None:
    """Wait until somebody waits for what this connection has locked."""
    async with asyncio.timeout(10):
        while not await sql.fetchval(
            "select exists (select from pg_locks where not granted and pg_backend_pid() = any(pg_blocking_pids(pid)))"
        ):
            await asyncio.sleep(0.005)


async def rows_of(sql: Any, product: str) -> list[Any]:
    """All that there is of a product."""
    return list(
        await sql.fetch(
            """
            select product.spec_version, tenant.tenant_id, tenant.version, tenant.delete_time, principal.principal_id,
                principal.version as principal_version, api_key.key_uid, api_key.version as key_version
            from product left join tenant using (product_id) left join principal using (tenant_uid)
            left join api_key using (tenant_uid, principal_uid)
            where product_id = $1 order by 2, 5, 7
            """,
            product,
        )
    )


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_mutation_in_flight_is_not_committed_after_its_token(
    root: Client, sql: Sql, fresh_id: str, ending: str
) -> None:
    place = await Place.make(root, fresh_id)
    end, reason = ENDINGS[ending]
    before = await rows_of(sql, fresh_id)
    logged = await events(root, place.tenant), await events(root, f"products/{fresh_id}")
    token = await root.create_key(SYSTEM, mode="ALL", new_machine_user=True)
    requests = place.requests()
    async with holder_of(root, token) as client:
        async with sql.transaction():
            await sql.execute("select from product where product_id = $1 for update", fresh_id)
            calls = [
                asyncio.create_task(reason_of(getattr(getattr(client, stub), verb)(request, timeout=30)))
                for verb, (stub, request) in requests.items()
            ]
            await wanted(sql)
            # The others wait for their turn, in memory.
            await asyncio.sleep(0.1)
            assert not any(call.done() for call in calls)
            await end(root, token.api_key.name)
        assert dict(zip(requests, await asyncio.gather(*calls), strict=True)) == dict.fromkeys(requests, reason)
    assert await rows_of(sql, fresh_id) == before
    assert (await events(root, place.tenant), await events(root, f"products/{fresh_id}")) == logged


async def test_a_repetition_in_flight_is_not_answered_after_its_token(root: Client, sql: Sql, fresh_id: str) -> None:
    place = await Place.make(root, fresh_id)
    token = await root.create_key(SYSTEM, mode="ALL", new_machine_user=True)
    request = tenant_service_pb2.UpdateTenantRequest(
        tenant=tenant_service_pb2.Tenant(name=place.tenant, display_name="Changed"),
        update_mask=FieldMask(paths=["display_name"]),
        request_id=str(uuid.uuid4()),
    )
    async with holder_of(root, token) as client:
        await client.tenants.UpdateTenant(request)
        async with sql.transaction():
            # What a repetition locks.
            await sql.execute(
                "select from mutation_request where request_id = $1 for update", uuid.UUID(request.request_id)
            )
            call = asyncio.create_task(reason_of(client.tenants.UpdateTenant(request)))
            await wanted(sql)
            await root.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=token.api_key.name))
        assert await call == "TOKEN_INVALID"


@pytest.mark.parametrize("way", ["delete", "revoke", "disable", "rotate", "narrow", "with its owner"])
async def test_a_token_may_take_away_from_itself(root: Client, fresh_id: str, way: str) -> None:
    """It is answered what was done, although the token works no more by then; the audit knows who it was."""
    created = await root.create_key(SYSTEM, mode="ALL", name=fresh_id, new_machine_user=True)
    name, owner = created.api_key.name, created.api_key.owner
    get = api_key_service_pb2.GetApiKeyRequest(name=name)
    async with holder_of(root, created) as client:
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "delete": lambda: client.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=name)),
            "revoke": lambda: client.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=name)),
            "disable": lambda: client.keys.DisableApiKey(api_key_service_pb2.DisableApiKeyRequest(name=name)),
            "rotate": lambda: client.keys.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(name=name)),
            "narrow": lambda: client.keys.UpdateApiKey(
                update(name, mode=RESTRICTED, grants=[types_pb2.Grant(resource="products", actions=["list"])])
            ),
            "with its owner": lambda: client.machine_users.DeleteMachineUser(
                machine_user_service_pb2.DeleteMachineUserRequest(name=owner)
            ),
        }
        answer = await calls[way]()
        if way == "narrow":
            await client.products.ListProducts(product_service_pb2.ListProductsRequest())
            assert await reason_of(client.keys.GetApiKey(get)) == "PERMISSION_MISSING"
        else:
            assert await reason_of(client.keys.GetApiKey(get)) == "TOKEN_INVALID"
        if way == "rotate":
            async with holder_of(root, answer) as renewed:
                await renewed.products.ListProducts(product_service_pb2.ListProductsRequest())
    done = (await events(root, SYSTEM, target=owner if way == "with its owner" else name))[-1]
    assert (done.caller, done.caller_display_name) == (name, fresh_id)


async def test_what_a_narrowed_token_hands_out_is_measured_by_what_it_has_left(
    root: Client, sql: Sql, fresh_id: str
) -> None:
    """The token may still create tokens, but no longer one that can do everything."""
    token = await root.create_key(SYSTEM, mode="ALL", new_machine_user=True)
    # In another tenant of tokens, so that the two calls do not wait for each other.
    other = await root.create_tenant("gatekey", fresh_id)
    request = api_key_service_pb2.CreateApiKeyRequest(
        parent=other, api_key=api_key_service_pb2.ApiKey(display_name=fresh_id, mode=ALL), request_id=str(uuid.uuid4())
    )
    request.new_machine_user.SetInParent()
    async with holder_of(root, token) as client:
        # Another call with the same id, of which nothing is left: the call waits for its end before it does anything.
        claim = sql.transaction()
        await claim.start()
        await sql.execute(
            "insert into mutation_request (caller, request_id, fingerprint) values ($1, $2, $3)",
            token.api_key.name,
            uuid.UUID(request.request_id),
            bytes(32),
        )
        call = asyncio.create_task(reason_of(client.keys.CreateApiKey(request)))
        await wanted(sql)
        grants = [types_pb2.Grant(resource="products/gatekey", actions=["*"])]
        await root.keys.UpdateApiKey(update(token.api_key.name, mode=RESTRICTED, grants=grants))
        await claim.rollback()
        assert await call == "TOKEN_EXCEEDS_CALLER"
    assert not await sql.fetchval("select exists (select from api_key where display_name = $1)", fresh_id)


@pytest.mark.slow
async def test_no_mutation_is_committed_after_the_revocation_of_its_token_was_answered(
    root: Client, fresh_id: str
) -> None:
    """By the revisions: a mutation that succeeded stands before the revocation, whatever the two did at once."""
    tenant = await root.create_tenant("heyoo", fresh_id)

    async def race(number: int) -> tuple[int, int, list[str]]:
        token = await root.create_key(SYSTEM, grants={tenant: ["*"]}, new_machine_user=True)
        async with holder_of(root, token) as client:
            adding = [asyncio.create_task(_revision(client, tenant, f"m{number}-{index}")) for index in range(4)]
            await asyncio.sleep(0.002 * (number % 5))
            revoke = api_key_service_pb2.RevokeApiKeyRequest(name=token.api_key.name)
            call = root.keys.RevokeApiKey(revoke)
            await call
            revoked = int(dict(await call.trailing_metadata())["gatekey-revision"])
            done = await asyncio.gather(*adding)
        assert all(revision < revoked for revision, _ in done)
        assert {reason for _, reason in done} <= {"", "TOKEN_INVALID"}
        return revoked, sum(not reason for _, reason in done), [reason for _, reason in done if reason]

    outcomes = [await race(number) for number in range(40)]
    assert any(done for _, done, _ in outcomes)
    assert any(refused for _, _, refused in outcomes)


async def _revision(client: Client, tenant: str, member: str) -> tuple[int, str]:
    request = member_service_pb2.AddMemberRequest(
        parent=tenant, member_id=member, member=member_service_pb2.Member(role="member")
    )
    call = client.members.AddMember(request)
    try:
        await call
    except grpc.RpcError as error:
        return 0, problem_of(error).reason
    return int(dict(await call.trailing_metadata())["gatekey-revision"]), ""
