"""Short runs of `make fuzz`; and that its judge can find something."""

import random
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from gatekey.core.secrets import new_secret
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from tests.fuzz import judge, sockets, specs
from tests.fuzz.campaign import METHODS, Campaign, saved, variables
from tests.fuzz.judge import Answer
from tests.support.databases import Databases
from tests.support.server import EXAMPLES, ServerProcess

SEED = 11
INVALID = grpc.StatusCode.INVALID_ARGUMENT


# ---------------------------------------------------------------- the judge


def answer(
    *,
    code: grpc.StatusCode = INVALID,
    message: str = "name: not of the form",
    reason: str = "NAME_INVALID",
    domain: str = "gatekey",
    description: str = "not of the form",
) -> Answer:
    """An error as the server tells it."""
    status = status_pb2.Status(code=code.value[0], message=message)
    violation = error_details_pb2.BadRequest.FieldViolation(field="name", reason=reason, description=description)
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=reason, domain=domain),
        error_details_pb2.BadRequest(field_violations=[violation]),
    ]
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return Answer(code, message, status.SerializeToString())


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert judge.faults(answer(), identified=True) == []
    assert judge.faults(answer(code=grpc.StatusCode.UNAUTHENTICATED, reason="TOKEN_INVALID"), identified=False) == []
    assert judge.faults(Answer(grpc.StatusCode.OK), identified=True) == []
    too_large = Answer(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (9 vs. 4)")
    assert judge.faults(too_large, identified=True) == []
    log = [
        '{"event": "rpc.unavailable", "level": "warning"}',
        '{"event": "Error parsing \':path\' metadata", "level": "error"}',
        "Gatekey serves on 127.0.0.1:50051",
    ]
    assert judge.faults_of_log(log, {"gk_secret"}) == []
    assert judge.faults_of_problem(["spec.yaml has a problem (SPEC_MALFORMED)", "spec.roles: line 3: no"], 1) == []


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (answer(code=grpc.StatusCode.INTERNAL), "INTERNAL"),
        (answer(code=grpc.StatusCode.UNKNOWN), "UNKNOWN"),
        (answer(code=grpc.StatusCode.DEADLINE_EXCEEDED), "DEADLINE_EXCEEDED"),
        (answer(message="KeyError: 'x'"), "KeyError"),
        (answer(message="<class 'int'> is wrong"), "<class"),
        (answer(description="see /usr/lib/python3/x"), "/usr/"),
        (answer(description="select spec from product"), "select"),
        (answer(message="gatekey_server.store failed"), "gatekey_server"),
        (answer(message="key gk_secret is unknown"), "secret"),
        (answer(description="key gk_secret is unknown"), "secret"),
        (answer(message="é" * 3000), "bytes"),
        (answer(reason="not a reason"), "is no reason"),
        (answer(reason=""), "is no reason"),
        (answer(domain="example.com"), "domain"),
        (Answer(INVALID, "what", b""), "no ErrorInfo"),
        (Answer(INVALID, "what", b"\xff"), "no message"),
        (Answer(grpc.StatusCode.NOT_FOUND, "", answer().details), "the code 3"),
        (Answer(grpc.StatusCode.UNAVAILABLE, "Socket closed"), "no ErrorInfo"),
        (Answer(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room"), "no ErrorInfo"),
    ],
)
def test_the_judge_finds_what_is_planted_in_an_answer(wrong: Answer, expected: str) -> None:
    found = judge.faults(wrong, identified=True, secrets={"gk_secret"})
    assert any(expected in what for what in found), found


@pytest.mark.parametrize("code", [grpc.StatusCode.OK, INVALID, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE])
def test_whoever_is_not_known_is_told_nothing_else(code: grpc.StatusCode) -> None:
    assert judge.faults(Answer(code), identified=False) == [f"a caller without a valid token is answered {code.name}"]


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "rpc.failed", "level": "error"}',
        '{"event": "background.failed", "level": "warning"}',
        '{"event": "usage.not_written", "level": "error"}',
        "Traceback (most recent call last):",
        '{"event": "callback", "exception": "Traceback (most recent call last)"}',
        '{"event": "rpc.refused", "level": "info", "token": "gk_secret"}',
    ],
)
def test_the_judge_finds_what_is_planted_in_a_log(line: str) -> None:
    assert judge.faults_of_log([line], {"gk_secret"})


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["spec.yaml has a problem"], 1),
        ([], 1),
        (["spec.yaml has a problem (SPEC_MALFORMED)"], 3),
        (["spec.yaml has a problem (SPEC_MALFORMED)", "AttributeError: 'NoneType' object"], 1),
    ],
)
def test_the_judge_finds_what_is_planted_in_a_refused_spec(lines: list[str], code: int) -> None:
    assert judge.faults_of_problem(lines, code)


def test_what_is_made_is_bounded() -> None:
    rng = random.Random(SEED)
    made = sockets.Bytes(rng, "gk_x")
    assert max(len(made.damaged()) for _ in range(100)) < 2 << 20
    damaged = specs.Specs(rng, [(EXAMPLES / "heyoo.yaml").read_text()])
    assert max(len(damaged.damaged()) for _ in range(100)) < 1 << 20


def test_an_exception_while_a_spec_is_read_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise AttributeError("planted")

    monkeypatch.setattr(specs, "read_spec", fail)
    assert specs.read(tmp_path / "spec.yaml") == (None, ["reading raises AttributeError: planted"])


# ---------------------------------------------------------------- short runs


@pytest.fixture
async def campaign(databases: Databases) -> AsyncIterator[Campaign]:
    """A server that is for this alone, and nothing found when it has ended."""
    token = new_secret("gk_")
    server = await ServerProcess.start(variables(await databases.create(), token))
    async with Campaign.against(server, token, SEED) as made:
        with saved(made.result, None):
            yield made
        await made.look()
    assert await server.stop() == 0
    found = [*map(str, made.result.findings), *judge.faults_of_log(server.output, made.secrets)]
    assert not found, "\n\n".join(found)


@pytest.mark.drill
async def test_no_message_nor_bytes_are_answered_with_a_fault(campaign: Campaign) -> None:
    await campaign.look()
    await campaign.messages(10)
    await campaign.sockets(6)
    await campaign.specs(4)
    sent, answered = campaign.result.sent, campaign.result.answers
    assert sent["messages"] > 200
    assert sent["connections"] > 50
    assert sent["specs"] > 20
    # Or else nothing got far enough.
    done = {answer.split()[0] for answer in answered if answer.endswith(" OK")}
    assert len(done) > len(METHODS) / 2, done


@pytest.mark.slow
async def test_a_few_messages_and_a_planted_fault(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    await campaign.look()
    await campaign.messages(20, most=200)
    assert campaign.result.sent["messages"] >= 200
    assert not campaign.result.findings
    # What else would be found.
    monkeypatch.setattr(judge, "_FAULTS", {INVALID})
    await campaign.messages(20, most=280)
    assert any("INVALID_ARGUMENT" in finding.what for finding in campaign.result.findings)
    campaign.result.findings.clear()
