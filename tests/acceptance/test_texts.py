"""Texts that no database holds, in every field of every RPC that holds a text."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from gatekey.core.decisions import RULES
from gatekey.v1 import api_key_service_pb2, cache_service_pb2, check_service_pb2
from gatekey_server.rpc.server import SERVICES
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tests.support.server import Client, Problem, ServerProcess, problem_of

INVALID = grpc.StatusCode.INVALID_ARGUMENT
METHODS = {f"{service.name}.{method.name}": method for service in SERVICES.values() for method in service.methods}
BAD = {"NUL": b"a\0b", "NUL alone": b"\0", "surrogate": b"a\xed\xa0\x80", "overlong NUL": b"\xc0\x80"}
ALLOWED_NUL = {"CheckService.Check", "CheckService.BatchCheck", "CacheService.Resolve", "ApiKeyService.IdentifySecret"}
"""Their texts are keys, which are hashed, and questions, which are judged one by one."""


def fields(descriptor: Descriptor, path: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the paths of all strings in a message, the first of lists, and the numbers of the fields on the way."""
    for field in descriptor.fields:
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        name = f"{path}{field.name}[0]" if field.is_repeated and not is_map else f"{path}{field.name}"
        if field.type == FieldDescriptor.TYPE_STRING:
            yield name, (field.number,)
        elif field.message_type is not None:
            for below, numbers in fields(field.message_type, f"{name}."):
                yield below, (field.number, *numbers)


def wire(numbers: tuple[int, ...], text: bytes) -> bytes:
    """A message with nothing but this text; on the wire, since no library writes one with a surrogate."""
    number, *rest = numbers
    value = wire(tuple(rest), text) if rest else text
    return bytes((number << 3 | 2, len(value))) + value if number < 16 else b"%c\x01%c" % (
        number << 3 & 0x7F | 0x82,
        len(value),
    ) + value  # fmt: skip


async def refusal(root: Client, method: str, data: bytes) -> Problem | bytes:
    """Send bytes; answers how they are refused, or the answer."""
    descriptor = METHODS[method]
    path = f"/{descriptor.containing_service.full_name}/{descriptor.name}"
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = root.channel.unary_unary(path)
    try:
        answer: bytes = await call(data, timeout=20)
    except grpc.RpcError as error:
        return problem_of(error)
    return answer


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
async def test_no_text_has_what_the_database_cannot_hold(root: Client, server: ServerProcess, text: bytes) -> None:
    tried = 0
    for method, descriptor in METHODS.items():
        for path, numbers in fields(descriptor.input_type):
            if b"\0" in text and method in ALLOWED_NUL:
                continue
            data = wire(numbers, text)
            problem = await refusal(root, method, data)
            assert isinstance(problem, Problem), (method, path)
            assert (problem.code, problem.fields) == (INVALID, {path: "TEXT_INVALID"}), (method, path, problem)
            tried += 1
    assert tried > 150
    assert not [line for line in server.output if "rpc.failed" in line]


async def test_a_nul_behind_much_else_is_found(root: Client) -> None:
    grants = b"".join(wire((6, 2), b"read") for _ in range(4000))
    data = wire((1,), b"products/heyoo") + b"\x12" + varint(len(grants) + 5) + grants + wire((2,), b"a\0b")
    problem = await refusal(root, "ApiKeyService.CreateApiKey", data)
    assert isinstance(problem, Problem)
    assert problem.fields == {"api_key.display_name": "TEXT_INVALID"}


def varint(number: int) -> bytes:
    """A number below 2**21 on the wire."""
    return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14))


async def test_a_nul_in_a_question_or_a_key_stays_with_it(root: Client, server: ServerProcess) -> None:
    check, nul = check_service_pb2.CheckRequest, "a\0b"
    asked: dict[str, dict[str, Any]] = {
        "": {},
        "key": {"key": nul},
        "resource": {"resource": nul},
        "action": {"action": nul},
        "tenant": {"tenant": nul},
        "product": {"product": nul},
    }
    assert set(asked) - {""} == {path for path, _ in fields(check.DESCRIPTOR)}
    checks = [check(**{"key": "hey_x", "resource": "campaigns", "action": "read", **texts}) for texts in asked.values()]
    answer = await root.checks.BatchCheck(check_service_pb2.BatchCheckRequest(checks=checks), timeout=10)
    for (field, _), one, result in zip(asked.items(), checks, answer.results, strict=True):
        alone = await refusal(root, "CheckService.Check", one.SerializeToString())
        if field in {"", "key"}:
            assert result.response.reason == check_service_pb2.CheckResponse.REASON_KEY_UNKNOWN
            assert isinstance(alone, bytes)
        else:
            assert (result.error.code, result.error.field) == (INVALID.value[0], field)
            assert isinstance(alone, Problem)
            assert alone.fields == {field: result.error.reason}

    requests: dict[str, Message] = {
        "CacheService.Resolve": cache_service_pb2.ResolveRequest(keys=[nul, "hey_x"], rules=RULES),
        "ApiKeyService.IdentifySecret": api_key_service_pb2.IdentifySecretRequest(secret=nul),
    }
    resolved = await refusal(root, "CacheService.Resolve", requests["CacheService.Resolve"].SerializeToString())
    assert isinstance(resolved, bytes)
    assert [result.HasField("key") for result in cache_service_pb2.ResolveResponse.FromString(resolved).results] == [
        False,
        False,
    ]
    unknown = await refusal(
        root, "ApiKeyService.IdentifySecret", requests["ApiKeyService.IdentifySecret"].SerializeToString()
    )
    assert isinstance(unknown, Problem)
    assert unknown.code == grpc.StatusCode.NOT_FOUND
    assert not [line for line in server.output if "rpc.failed" in line]
