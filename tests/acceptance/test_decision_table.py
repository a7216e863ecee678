"""Every case of the decision table, over the network. Against `decide` alone: tests/unit/test_decision_table.py."""

import grpc
import pytest
from gatekey.v1 import check_service_pb2 as pb

from tests.support.fixtures import TABLE, Fixtures
from tests.support.server import problem_of
from tests.support.table import Case


@pytest.mark.parametrize("case", TABLE.cases, ids=[case.id for case in TABLE.cases])
async def test_case(fixtures: Fixtures, case: Case) -> None:
    """The answer is the table's; it says whom it is about, or nothing at all."""
    client, question = fixtures.caller(case), fixtures.question(case)
    if case.refused:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await client.checks.Check(question, timeout=10)
        problem = problem_of(refusal.value)
        assert (problem.code, problem.reason) == (grpc.StatusCode.INVALID_ARGUMENT, case.expected)
        return
    answer = await client.checks.Check(question, timeout=10)
    assert pb.CheckResponse.Reason.Name(answer.reason) == f"REASON_{case.expected}"
    assert answer.allowed == (case.expected == "ALLOWED")
    assert [(missing.resource, missing.action) for missing in answer.missing_permissions] == case.missing
    assert _subject(answer) == fixtures.subject(case)


def _subject(answer: pb.CheckResponse) -> dict[str, object]:
    """All that the answer tells but the decision itself."""
    told = {field.name: value for field, value in answer.ListFields()}
    for field in ("allowed", "reason", "message", "missing_permissions", "expire_time", "revision"):
        told.pop(field, None)
    return told | {"expires": answer.HasField("expire_time")}
