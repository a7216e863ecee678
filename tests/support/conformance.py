"""The decision table as data, for a client in another language: questions to ask, and the answers that are right."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from gatekey.v1 import check_service_pb2
from gatekey.v1.types_pb2 import KeyKind

from tests.support.fixtures import TABLE, Fixtures
from tests.support.paths import PATHS
from tests.support.programs import run
from tests.support.server import Client
from tests.support.table import Case

Answer = dict[str, Any]

NOTHING: Answer = {
    "code": 0,
    "reason": "",
    "allowed": False,
    "missing": [],
    "product": "",
    "tenant": "",
    "principal": "",
    "role": "",
    "api_key": "",
    "kind": "UNSPECIFIED",
    "expires": False,
}


def question(client: Client, request: check_service_pb2.CheckRequest) -> dict[str, Any]:
    """A question, and the token of the client that asks it."""
    return {
        "token": client.token,
        "key": request.key,
        "resource": request.resource,
        "action": request.action,
        "tenant": request.tenant if request.HasField("tenant") else None,
    }


async def ask(
    program: Sequence[str | Path],
    address: str,
    cases: Sequence[Mapping[str, Any]],
    tls: Mapping[str, str] | None = None,
) -> list[tuple[Answer, Answer]]:
    """Let a program ask all questions, each alone and all together; answers both answers to each."""
    given = {"address": address, "tls": tls, "cases": cases}
    answered = json.loads(await run(*program, stdin=json.dumps(given)))
    return list(zip(answered["alone"], answered["together"], strict=True))


async def differences(fixtures: Fixtures, address: str, program: Sequence[str | Path]) -> dict[str, tuple[Answer, ...]]:
    """The cases of the table in which a program's answers are wrong: what was right, and both answers."""
    cases = TABLE.cases
    answers = await ask(program, address, [question(fixtures.caller(case), fixtures.question(case)) for case in cases])
    expected = [_expected(fixtures, case) for case in cases]
    return {
        case.id: (right, alone, together)
        for case, right, (alone, together) in zip(cases, expected, answers, strict=True)
        if not right == alone == together
    }


async def wrong_paths(program: Sequence[str | Path]) -> dict[tuple[str, ...], str | None]:
    """The ids of which a program makes another path than is right, and that path."""
    given = {"address": "", "tls": None, "cases": [], "paths": list(PATHS)}
    made = json.loads(await run(*program, stdin=json.dumps(given)))["paths"]
    return {ids: path for (ids, right), path in zip(PATHS.items(), made, strict=True) if path != right}


async def load(
    program: Sequence[str | Path], addresses: Sequence[str], token: str, until: Path
) -> tuple[int, list[str]]:
    """Let a program call several servers until a file is there; how many calls succeeded, and how the others failed."""
    given = {"load": {"addresses": addresses, "token": token, "until": str(until)}, "cases": [], "paths": []}
    told = json.loads(await run(*program, stdin=json.dumps({"address": "", "tls": None, **given})))
    return told["done"], told["failures"] or []


async def callers_over_tls(
    program: Sequence[str | Path], address: str, files: Mapping[str, str], root: Client
) -> list[str]:
    """Ask about a key that is none: with a token, and without one, by the certificate. Answers the reasons."""
    request = check_service_pb2.CheckRequest(key="none", resource="campaigns", action="read")
    with_token = question(root, request)
    answers = await ask(program, address, [with_token, {**with_token, "token": ""}], files)
    return [answer["reason"] for both in answers for answer in both]


def _expected(fixtures: Fixtures, case: Case) -> Answer:
    if case.refused:
        return {**NOTHING, "code": grpc.StatusCode.INVALID_ARGUMENT.value[0], "reason": case.expected}
    subject = fixtures.subject(case)
    kind = subject.pop("kind", KeyKind.KEY_KIND_UNSPECIFIED)
    return {
        **NOTHING,
        **subject,
        "reason": case.expected,
        "allowed": case.expected == "ALLOWED",
        "missing": [list(pair) for pair in case.missing],
        "kind": KeyKind.Name(kind).removeprefix("KEY_KIND_"),
    }
