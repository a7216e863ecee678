"""`BatchCheck`: many questions, each answered as if it were alone."""

from typing import Any

import grpc
import pytest
from gatekey.core.secrets import new_secret
from gatekey.v1 import api_key_service_pb2
from gatekey.v1.check_service_pb2 import BatchCheckRequest, BatchCheckResponse, CheckRequest, CheckResponse

from tests.support.server import Client, problem_of

MAX_CHECKS = 1000


async def batch(client: Client, *checks: CheckRequest) -> list[Any]:
    """Ask many questions at once; every result is a `CheckResponse` or a `CheckError`."""
    answer: BatchCheckResponse = await client.checks.BatchCheck(BatchCheckRequest(checks=checks), timeout=10)
    return [getattr(result, result.WhichOneof("result") or "") for result in answer.results]


async def keys_of_a_tenant(root: Client, tenant_id: str, count: int) -> list[api_key_service_pb2.CreateApiKeyResponse]:
    tenant = await root.create_tenant("heyoo", tenant_id)
    owner = await root.add_member(tenant, "owner", "owner")
    return [await root.create_key(tenant, owner, name=f"Key {number}") for number in range(count)]


async def test_every_question_gets_its_own_answer_in_order(root: Client, fresh_id: str) -> None:
    keys = await keys_of_a_tenant(root, fresh_id, 3)
    questions = [
        CheckRequest(key=key, resource=resource, action=action, tenant=tenant)
        for key in (*(made.secret for made in keys), new_secret("heyoo_"), "no secret")
        for resource, action in (("campaigns", "read"), ("campaigns/c1", "write"), ("nothing", "read"))
        for tenant in (None, fresh_id, f"{fresh_id}x")
    ]
    alone = [await root.checks.Check(question, timeout=10) for question in questions]
    together = await batch(root, *questions)
    for answer in (*alone, *together):
        answer.revision = 0
    assert together == alone
    assert len({answer.reason for answer in alone}) >= 4
    assert {answer.api_key for answer in alone} == {"", *(made.api_key.name for made in keys)}


async def test_one_question_s_trouble_is_not_another_s(root: Client, fresh_id: str) -> None:
    (made,) = await keys_of_a_tenant(root, fresh_id, 1)
    good = CheckRequest(key=made.secret, resource="campaigns", action="read")
    answers = await batch(
        root,
        good,
        CheckRequest(resource="campaigns", action="read"),
        CheckRequest(key=made.secret, resource="campaigns//x", action="read"),
        CheckRequest(key=made.secret, resource="campaigns", action="read", tenant=""),
        CheckRequest(key=made.secret, resource="campaigns", action="read", min_revision=-1),
        CheckRequest(key=made.secret, resource="campaigns", action="read", min_revision=1 << 60),
        good,
    )
    first, *broken, last = answers
    assert isinstance(first, CheckResponse)
    assert isinstance(last, CheckResponse)
    assert first.allowed
    assert last.allowed
    assert [(error.code, error.reason, error.field) for error in broken] == [
        (grpc.StatusCode.INVALID_ARGUMENT.value[0], "KEY_REQUIRED", "key"),
        (grpc.StatusCode.INVALID_ARGUMENT.value[0], "RESOURCE_INVALID", "resource"),
        (grpc.StatusCode.INVALID_ARGUMENT.value[0], "ID_REQUIRED", "tenant"),
        (grpc.StatusCode.INVALID_ARGUMENT.value[0], "REVISION_INVALID", "min_revision"),
        (grpc.StatusCode.UNAVAILABLE.value[0], "REVISION_NOT_REACHED", ""),
    ]
    assert all(error.message for error in broken)


async def test_a_batch_ends_with_the_revocation_of_its_key(root: Client, fresh_id: str) -> None:
    kept, revoked = await keys_of_a_tenant(root, fresh_id, 2)
    questions = [CheckRequest(key=made.secret, resource="campaigns", action="read") for made in (kept, revoked)]
    assert [answer.allowed for answer in await batch(root, *questions)] == [True, True]
    await root.keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(name=revoked.api_key.name))
    assert [answer.allowed for answer in await batch(root, *questions)] == [True, False]


@pytest.mark.parametrize("count", [0, MAX_CHECKS + 1])
async def test_a_batch_has_a_size(root: Client, count: int) -> None:
    question = CheckRequest(key="x", resource="campaigns", action="read")
    with pytest.raises(grpc.RpcError) as raised:
        await batch(root, *[question] * count)
    problem = problem_of(raised.value)
    assert (problem.code, problem.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        {"checks": "CHECKS_COUNT_INVALID"},
    )


async def test_the_largest_batch_is_answered(root: Client, fresh_id: str) -> None:
    (made,) = await keys_of_a_tenant(root, fresh_id, 1)
    secrets = [made.secret, *(new_secret("heyoo_") for _ in range(MAX_CHECKS - 1))]
    answers = await batch(root, *(CheckRequest(key=key, resource="campaigns", action="read") for key in secrets))
    assert [answer.allowed for answer in answers] == [True] + [False] * (MAX_CHECKS - 1)
