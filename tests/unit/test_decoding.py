"""No request takes the loop for long before it is known to be a good one."""

import time

import pytest
from gatekey.core.errors import InvalidRequest
from gatekey.v1 import api_key_service_pb2, cache_service_pb2, check_service_pb2, product_service_pb2
from gatekey_server.rpc import decoding
from google.protobuf.message import Message

# Of the CPU, whatever else the machine does.
MAX_S = 0.02
MAX_TRIES = 20
MIB = 1 << 20


def varint(number: int) -> bytes:
    """A number on the wire."""
    text = b""
    while number > 0x7F:
        text += bytes((number & 0x7F | 0x80,))
        number >>= 7
    return text + bytes((number,))


def field(number: int, data: bytes) -> bytes:
    """A field that has a length."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def number_of(message: type[Message], name: str) -> int:
    """The number of a field."""
    return int(message.DESCRIPTOR.fields_by_name[name].number)


def worst() -> dict[str, tuple[type[Message], bytes]]:
    """Requests that cost most for their size."""
    batch, create = check_service_pb2.BatchCheckRequest, api_key_service_pb2.CreateApiKeyRequest
    bad = field(1, field(1, b"\xff"))
    key, spec_bytes, key_bytes = number_of(create, "api_key"), decoding.MAX_SPEC_BYTES, decoding.MAX_API_KEY_BYTES
    unseen = decoding.MAX_UNSEEN_BYTES
    labels = number_of(api_key_service_pb2.ApiKey, "labels")
    entries = b"".join(field(labels, field(1, b"%x" % number)) for number in range(8000))
    cases: dict[str, tuple[type[Message], bytes]] = {
        "half a million checks": (batch, b"\x0a\x00" * (MIB // 2)),
        "and bad text": (batch, b"\x0a\x00" * 500_000 + bad),
        "as many checks as are not counted": (batch, b"\x0a\x00" * ((unseen - 10) // 2) + bad),
        "one check of many texts": (batch, field(1, b"\x0a\x01x" * (MIB // 4) + b"\x0a\x01\xff")),
        "as many fields as may be, and bad text": (
            batch,
            b"\x0a\x00" * 9_990 + field(1, field(1, b"x" * unseen)) + bad,
        ),
        "unknown fields": (batch, varint(100 << 3) + b"\x00" * (MIB - 8)),
        "unknown numbers": (batch, (varint(100 << 3) + b"\x00") * (MIB // 3)),
        "groups": (batch, (b"\x7b" + b"\x7c") * (MIB // 2)),
        "keys to resolve": (cache_service_pb2.ResolveRequest, b"\x0a\x00" * (decoding.MAX_RESOLVE_BYTES // 2)),
        "uses": (cache_service_pb2.ReportUsesRequest, b"\x0a\x00" * (decoding.MAX_REPORT_BYTES // 2)),
        "labels": (create, field(key, entries)),
        "actions of a grant": (
            create,
            field(key, field(number_of(api_key_service_pb2.ApiKey, "grants"), b"\x12\x00" * (key_bytes // 2 - 20))),
        ),
    }
    spec = product_service_pb2.ApplyProductRequest.DESCRIPTOR.fields_by_name["spec"].message_type
    assert spec is not None
    for each in spec.fields:
        for size in (unseen - 20, spec_bytes - 20):
            body = varint(each.number << 3 | 2) + b"\x00"
            data = field(1, body * (size // len(body)))
            cases[f"spec.{each.name} {size}"] = (product_service_pb2.ApplyProductRequest, data)
    return cases


WORST = worst()


@pytest.mark.drill
@pytest.mark.parametrize("name", WORST)
def test_decoding_is_bounded(name: str) -> None:
    message_class, data = WORST[name]
    took = [MAX_S]
    # On a busy machine most are slowed down by what else it does.
    while min(took) >= MAX_S and len(took) <= MAX_TRIES:
        began = time.thread_time()
        try:
            decoding.decode(message_class, data)
        except InvalidRequest as error:
            assert error.reason in {"REQUEST_TOO_COMPLEX", "TEXT_INVALID", "REQUEST_MALFORMED"}  # noqa: PT017
        took.append(time.thread_time() - began)
    assert min(took) < MAX_S


@pytest.mark.parametrize(
    ("data", "reason", "path"),
    [
        (field(1, field(1, b"ok")) + field(1, field(1, b"\xff")), "TEXT_INVALID", "checks[1].key"),
        (b"\x0a\x05ab", "REQUEST_MALFORMED", ""),
        (b"\x0f", "REQUEST_MALFORMED", ""),
        (b"\x0a" + b"\xff" * 20, "REQUEST_MALFORMED", ""),
        (b"\x0a\x00" * 40_000, "REQUEST_TOO_COMPLEX", "checks"),
        (b"\x7b" * 100, "REQUEST_MALFORMED", ""),
        (b"\xff" * (decoding.MAX_UNSEEN_BYTES + 1), "REQUEST_MALFORMED", ""),
    ],
)
def test_what_is_wrong_is_told(data: bytes, reason: str, path: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        decoding.decode(check_service_pb2.BatchCheckRequest, data)
    assert raised.value.reason == reason
    assert [violation.field for violation in raised.value.violations] == ([path] if path else [])


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (field(2, field(2, b"a\0")), "api_key.display_name"),
        (field(2, field(6, b"") * 2 + field(6, field(2, b"ok") + field(2, b"\0"))), "api_key.grants[2].actions[1]"),
        (field(2, b"\x18\x00" + field(8, b"\x08\x00") + field(12, field(2, b"\0"))), "api_key.labels.value"),
        # Of a field that comes twice the last counts, and the messages of one that does are one.
        (field(5, b"\0") + field(5, b"ok"), "request_id"),
        (field(2, field(2, b"ok")) + field(2, field(11, b"\0")), "api_key.description"),
        # Beside what is not known, in a group and with a byte 0 of its own.
        (field(99, b"\0") + varint(99 << 3 | 1) + bytes(8) + b"\x7b\x08\x00\x7c" + field(1, b"\0"), "parent"),
    ],
)
def test_a_nul_is_refused_by_the_field(data: bytes, path: str) -> None:
    create = api_key_service_pb2.CreateApiKeyRequest
    create.FromString(data)
    with pytest.raises(InvalidRequest) as raised:
        decoding.decode(create, data)
    assert [(violation.field, violation.reason) for violation in raised.value.violations] == [(path, "TEXT_INVALID")]


def test_a_byte_0_that_is_no_text_is_taken() -> None:
    create = api_key_service_pb2.CreateApiKeyRequest
    data = field(99, b"\0") + field(2, b"\x18\x00" + field(6, b"") + field(8, b"\x08\x00")) + field(5, b"")
    assert decoding.decode(create, data) == create.FromString(data)


def test_a_full_batch_of_large_checks_is_decoded() -> None:
    check = check_service_pb2.CheckRequest(key="k" * 45, resource="a/" * 400 + "b", action="read", tenant="t" * 60)
    batch = check_service_pb2.BatchCheckRequest(checks=[check] * 1000)
    assert batch.ByteSize() > decoding.MAX_UNSEEN_BYTES
    assert decoding.decode(check_service_pb2.BatchCheckRequest, batch.SerializeToString()) == batch
