"""Races, each run 200 times with real concurrency, or 20 in a hurry: nothing orphaned or doubled, and no fault."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg
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
from google.protobuf.field_mask_pb2 import FieldMask

from tests.acceptance.test_products import own_spec
from tests.support.server import Client, problem_of

AT_ONCE = 8

Race = Callable[[int], Awaitable[None]]


@pytest.fixture(params=[20, pytest.param(200, marks=pytest.mark.slow)])
def runs(request: pytest.FixtureRequest) -> int:
    """How often a race is run."""
    return int(request.param)


async def run(race: Race, runs: int) -> None:
    """Run a race so many times, some of them next to one another."""
    numbers = iter(range(runs))

    async def work() -> None:
        for number in numbers:
            await race(number)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(work())


async def together(*attempts: Awaitable[Any]) -> tuple[list[Any], list[str]]:
    """What attempts at once are answered: the answers in order, None for a refusal; and the refusals' reasons."""
    results: Sequence[Any] = await asyncio.gather(*attempts, return_exceptions=True)
    reasons = []
    for result in results:
        if isinstance(result, grpc.RpcError):
            reasons.append(problem_of(result).reason)
            assert problem_of(result).code not in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
            assert problem_of(result).code != grpc.StatusCode.UNAVAILABLE
        elif isinstance(result, BaseException):
            raise result
    return [None if isinstance(result, BaseException) else result for result in results], reasons


@pytest.fixture
async def tenant(root: Client, fresh_id: str) -> str:
    """A tenant of Heyoo with an owner."""
    name = await root.create_tenant("heyoo", fresh_id)
    await root.add_member(name, "owner", "owner")
    return name


async def test_rotate_and_rotate(root: Client, tenant: str, runs: int) -> None:
    async def race(_: int) -> None:
        created = await root.create_key(tenant, f"{tenant}/members/owner")
        request = api_key_service_pb2.RotateApiKeyRequest(name=created.api_key.name)
        request.grace.FromSeconds(3600)
        answers, reasons = await together(*(root.keys.RotateApiKey(request) for _ in range(2)))
        assert not reasons
        verdicts = [await root.verdict(answer.secret, "tags", "read") for answer in answers]
        # One after the other: each retired the one before it, and the first of all is gone.
        assert verdicts == ["ALLOWED", "ALLOWED"]
        assert await root.verdict(created.secret, "tags", "read") == "KEY_UNKNOWN"
        key = await root.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=created.api_key.name))
        assert [secret.HasField("expire_time") for secret in key.secrets] == [False, True]

    await run(race, runs)


async def test_rotate_and_rotate_by_etag(root: Client, tenant: str, runs: int) -> None:
    async def race(_: int) -> None:
        created = await root.create_key(tenant, f"{tenant}/members/owner")
        request = api_key_service_pb2.RotateApiKeyRequest(name=created.api_key.name, etag=created.api_key.etag)
        answers, reasons = await together(*(root.keys.RotateApiKey(request) for _ in range(2)))
        assert reasons == ["ETAG_MISMATCH"]
        (winner,) = filter(None, answers)
        assert await root.verdict(winner.secret, "tags", "read") == "ALLOWED"
        assert await root.verdict(created.secret, "tags", "read") == "KEY_UNKNOWN"

    await run(race, runs)


async def test_delete_key_and_delete_machine_user(
    root: Client, tenant: str, sql: "asyncpg.Connection[asyncpg.Record]", runs: int
) -> None:
    async def race(_: int) -> None:
        created = await root.create_key(tenant, new_machine_user=True)
        _answers, reasons = await together(
            root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=created.api_key.name)),
            root.machine_users.DeleteMachineUser(
                machine_user_service_pb2.DeleteMachineUserRequest(name=created.machine_user.name)
            ),
        )
        assert reasons in (["API_KEY_NOT_FOUND"], ["MACHINE_USER_NOT_FOUND"])
        assert await root.verdict(created.secret, "tags", "read") == "KEY_UNKNOWN"

    await run(race, runs)
    assert await left_in(sql, tenant) == (1, 0)


async def test_remove_member_and_create_key(
    root: Client, tenant: str, sql: "asyncpg.Connection[asyncpg.Record]", runs: int
) -> None:
    async def race(number: int) -> None:
        member = await root.add_member(tenant, f"m{number}", "member")
        (_, created), reasons = await together(
            root.members.RemoveMember(member_service_pb2.RemoveMemberRequest(name=member)),
            root.create_key(tenant, member),
        )
        assert reasons in ([], ["MEMBER_NOT_FOUND"])
        if created:
            assert await root.verdict(created.secret, "tags", "read") == "KEY_UNKNOWN"

    await run(race, runs)
    assert await left_in(sql, tenant) == (1, 0)


async def test_demote_an_owner_and_demote_the_other(root: Client, fresh_id: str, runs: int) -> None:
    async def race(number: int) -> None:
        tenant = await root.create_tenant("heyoo", f"{fresh_id}-{number}")
        owners = [await root.add_member(tenant, letter, "owner") for letter in "ab"]
        demote = [
            member_service_pb2.UpdateMemberRequest(
                member=member_service_pb2.Member(name=owner, role="viewer"), update_mask=FieldMask(paths=["role"])
            )
            for owner in owners
        ]
        _, reasons = await together(*(root.members.UpdateMember(request) for request in demote))
        assert reasons == ["LAST_OWNER"]
        people = await root.members.ListPeople(member_service_pb2.ListPeopleRequest(parent=tenant))
        assert Counter(person.member.role for person in people.people) == {"owner": 1, "viewer": 1}

    await run(race, runs)


async def test_delete_tenant_and_create_key(root: Client, fresh_id: str, runs: int) -> None:
    async def race(number: int) -> None:
        tenant = await root.create_tenant("heyoo", f"{fresh_id}-{number}")
        owner = await root.add_member(tenant, "owner", "owner")
        (deleted, created), reasons = await together(
            root.tenants.DeleteTenant(tenant_service_pb2.DeleteTenantRequest(name=tenant)),
            root.create_key(tenant, owner),
        )
        assert deleted
        assert reasons in ([], ["TENANT_DELETED"])
        assert deleted.deleted.api_keys == (1 if created else 0)
        if created:
            assert await root.verdict(created.secret, "tags", "read") == "TENANT_DELETED"

    await run(race, runs)


async def test_limit_and_limit(root: Client, fresh_id: str, runs: int) -> None:
    spec = own_spec(fresh_id)
    spec.limits.members, spec.limits.machine_users, spec.limits.api_keys = 2, 1, 2
    await root.apply(spec)

    async def race(number: int) -> None:
        tenant = await root.create_tenant(fresh_id, f"t{number}")
        owner = await root.add_member(tenant, "owner", "owner")
        _, reasons = await together(*(root.add_member(tenant, f"m{index}", "member") for index in range(2)))
        assert reasons == ["LIMIT_REACHED"]
        _, reasons = await together(*(root.create_key(tenant, new_machine_user=True) for _ in range(2)))
        assert reasons == ["LIMIT_REACHED"]
        _, reasons = await together(*(root.create_key(tenant, owner) for _ in range(2)))
        assert reasons == ["LIMIT_REACHED"]
        keys = await root.keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest(parent=tenant))
        people = await root.members.ListPeople(member_service_pb2.ListPeopleRequest(parent=tenant))
        assert (len(keys.api_keys), len(people.people), people.user_count) == (2, 3, 2)

    await run(race, runs)


async def test_etag_and_etag(root: Client, tenant: str, runs: int) -> None:
    created = await root.create_key(tenant, f"{tenant}/members/owner")
    name = created.api_key.name

    async def rename(text: str, etag: str) -> api_key_service_pb2.ApiKey:
        request = api_key_service_pb2.UpdateApiKeyRequest(
            api_key=api_key_service_pb2.ApiKey(name=name, display_name=text, etag=etag),
            update_mask=FieldMask(paths=["display_name"]),
        )
        key: api_key_service_pb2.ApiKey = await root.keys.UpdateApiKey(request)
        return key

    etag = created.api_key.etag
    for number in range(runs):
        answers, reasons = await together(*(rename(f"{number} {letter}", etag) for letter in "abc"))
        assert reasons == ["ETAG_MISMATCH"] * 2
        (winner,) = filter(None, answers)
        etag = winner.etag


async def test_apply_product_and_create_key(root: Client, fresh_id: str, runs: int) -> None:
    wide, narrow = own_spec(fresh_id), own_spec(fresh_id)
    narrow.secret_keys.modes.remove(types_pb2.ACCESS_MODE_READ_ONLY)
    await root.apply(wide)
    tenant = await root.create_tenant(fresh_id, "acme")
    owner = await root.add_member(tenant, "owner", "owner")
    for _ in range(runs):
        (applied, created), reasons = await together(
            root.apply(narrow), root.create_key(tenant, owner, mode="READ_ONLY")
        )
        # Either the key came first and stands in the way, or the spec did and no longer offers the mode.
        assert reasons == (["MODE_NOT_OFFERED"] if applied else ["SPEC_STRANDS"])
        if created:
            await root.keys.DeleteApiKey(api_key_service_pb2.DeleteApiKeyRequest(name=created.api_key.name))
        else:
            await root.apply(wide)
    await root.products.DeleteProduct(product_service_pb2.DeleteProductRequest(name=f"products/{fresh_id}", force=True))


async def left_in(sql: "asyncpg.Connection[asyncpg.Record]", tenant: str) -> tuple[int, int]:
    """How many principals and keys a tenant has."""
    row = await sql.fetchrow(
        """
        select
            (
                select count(*) from principal
                where principal.tenant_uid = tenant.tenant_uid and remove_time is null
            ) as principals,
            (
                select count(*) from api_key left join principal using (tenant_uid, principal_uid)
                where api_key.tenant_uid = tenant.tenant_uid and remove_time is null
            ) as api_keys
        from tenant where tenant_id = $1
        """,
        tenant.rpartition("/")[2],
    )
    assert row is not None
    return row["principals"], row["api_keys"]
