"""Every case of the decision table, through every kind of client."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import gatekey

from tests.client_python.support import made, opened
from tests.support.fixtures import TABLE, Fixtures
from tests.support.table import Case

CONCURRENCY = 32


async def test_the_decision_table(fixtures: Fixtures, kind: str) -> None:
    """All cases at once, so that those that can travel together do."""
    gate = asyncio.Semaphore(CONCURRENCY if kind != "event loop" else len(TABLE.cases))
    async with AsyncExitStack() as stack:
        tokens = {client.token: client.address for client in fixtures.callers.values()}
        clients = {
            token: await stack.enter_async_context(opened(kind, address, token=token, timeout=20))
            for token, address in tokens.items()
        }

        async def told(case: Case) -> object:
            async with gate:
                return await _told(clients[fixtures.caller(case).token], fixtures, case)

        answers = await asyncio.gather(*(told(case) for case in TABLE.cases))
    wrong = {
        case.id: (answer, expected)
        for case, answer in zip(TABLE.cases, answers, strict=True)
        if answer != (expected := _expected(fixtures, case))
    }
    assert not wrong
    assert len(answers) > 400


async def _told(client: Any, fixtures: Fixtures, case: Case) -> object:
    question = fixtures.question(case)
    tenant = question.tenant if question.HasField("tenant") else None
    try:
        decision = await made(client.check, question.key, question.resource, question.action, tenant=tenant)
    except gatekey.InvalidArgument as error:
        return error.reason
    return {
        "allowed": decision.allowed,
        "reason": decision.reason.value,
        "missing": [(missing.resource, missing.action) for missing in decision.missing_permissions],
        "product": decision.product,
        "tenant": decision.tenant,
        "api_key": decision.api_key,
        "kind": decision.kind.value,
        "principal": decision.principal,
        "role": decision.role,
        "expires": decision.expire_time is not None,
    }


def _expected(fixtures: Fixtures, case: Case) -> object:
    if case.refused:
        return case.expected
    subject = fixtures.subject(case)
    kind = TABLE.keys[case.key].kind if "kind" in subject else "UNSPECIFIED"
    texts = {name: subject.get(name, "") for name in ("product", "tenant", "api_key", "principal", "role")}
    return {
        "allowed": case.expected == "ALLOWED",
        "reason": case.expected,
        "missing": case.missing,
        **texts,
        "kind": kind,
        "expires": subject["expires"],
    }
