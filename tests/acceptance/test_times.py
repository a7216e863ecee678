"""Times and durations beyond every bound, in every field of every RPC that holds one."""

from collections.abc import Iterator
from datetime import UTC, timedelta
from typing import Any

import grpc
import pytest
from gatekey.core.times import MAX_TIME, MIN_TIME
from gatekey.v1 import (
    api_key_service_pb2,
    audit_service_pb2,
    cache_service_pb2,
    product_service_pb2,
    types_pb2,
)
from gatekey_server.rpc.server import SERVICES
from google.protobuf.descriptor import Descriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support.server import Client, ServerProcess, problem_of, read_example

TIME, DURATION = Timestamp.DESCRIPTOR.full_name, Duration.DESCRIPTOR.full_name
METHODS = {f"{service.name}.{method.name}": method for service in SERVICES.values() for method in service.methods}

_MAX_S, _MIN_S = int(MAX_TIME.timestamp()), int(MIN_TIME.timestamp())
TIMES = [
    # What `DateTime.MaxValue`, `datetime.max` and the zero values of several languages send.
    *(Timestamp(seconds=253_402_300_799, nanos=nanos) for nanos in (999_999_999, 999_999_900, 999_999_000, 0)),
    Timestamp(seconds=253_402_300_800),
    Timestamp(seconds=-62_135_596_800),
    Timestamp(seconds=-62_135_596_801),
    Timestamp(seconds=_MAX_S, nanos=1),
    Timestamp(seconds=_MAX_S + 1),
    Timestamp(seconds=_MIN_S - 1, nanos=999_999_999),
    *(Timestamp(seconds=seconds) for seconds in (2**63 - 1, -(2**63))),
    *(Timestamp(seconds=1_900_000_000, nanos=nanos) for nanos in (-1, 10**9, 2**31 - 1, -(2**31))),
]
DURATIONS = [
    *(Duration(seconds=sign * seconds) for sign in (1, -1) for seconds in (2**63 - 1, 315_576_000_000, 10**10)),
    Duration(seconds=-(2**63)),
    Duration(nanos=-1),
    Duration(seconds=-1),
    Duration(seconds=1, nanos=-1),
    Duration(seconds=-1, nanos=1),
    *(Duration(seconds=60, nanos=nanos) for nanos in (10**9, 2**31 - 1)),
]


def fields(descriptor: Descriptor, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the paths of all times and durations in a message, and their types."""
    for field in descriptor.fields:
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        below = f"{path}.{field.name}" if path else field.name
        if field.message_type.full_name in {TIME, DURATION}:
            yield below, field.message_type.full_name
        elif not field.message_type.full_name.startswith("google."):
            yield from fields(field.message_type, below)


def put(message: Any, path: str, value: Message) -> None:
    """Set a field; in the first element of lists, which are made."""
    name, _, rest = path.partition(".")
    inner = getattr(message, name)
    if hasattr(inner, "add"):
        inner = inner[0] if inner else inner.add()
    if rest:
        put(inner, rest, value)
    else:
        inner.CopyFrom(value)


class Case:
    """A tenant with a key, and a good request for each method that reads a time."""

    def __init__(self, tenant: str, owner: str, key: str) -> None:
        wanted = api_key_service_pb2.ApiKey(display_name="Key", owner=owner, mode=types_pb2.ACCESS_MODE_ALL)
        named = api_key_service_pb2.ApiKey(name=key)
        create = api_key_service_pb2.CreateApiKeyRequest(parent=tenant, api_key=wanted, validate_only=True)
        self.read: dict[str, tuple[str, Message]] = {
            "ApiKeyService.CreateApiKey:ttl": ("ttl", create),
            "ApiKeyService.CreateApiKey:api_key.expire_time": ("api_key.expire_time", create),
            "ApiKeyService.UpdateApiKey:api_key.expire_time": (
                "api_key.expire_time",
                api_key_service_pb2.UpdateApiKeyRequest(api_key=named, update_mask=FieldMask(paths=["expire_time"])),
            ),
            "ApiKeyService.RotateApiKey:grace": ("grace", api_key_service_pb2.RotateApiKeyRequest(name=key)),
            "AuditService.ListAuditEvents:start_time": (
                "start_time",
                audit_service_pb2.ListAuditEventsRequest(parent=tenant),
            ),
            "AuditService.ListAuditEvents:end_time": (
                "end_time",
                audit_service_pb2.ListAuditEventsRequest(parent=tenant),
            ),
            "CacheService.ReportUses:uses.ago": (
                "uses[0].ago",
                cache_service_pb2.ReportUsesRequest(uses=[cache_service_pb2.KeyUse(api_key=key)]),
            ),
            "ProductService.ApplyProduct:spec.publishable_keys.max_lifetime": (
                "spec.publishable_keys.max_lifetime",
                product_service_pb2.ApplyProductRequest(spec=read_example("bitsy"), validate_only=True),
            ),
            "ProductService.ApplyProduct:spec.secret_keys.max_lifetime": (
                "spec.secret_keys.max_lifetime",
                product_service_pb2.ApplyProductRequest(spec=read_example("heyoo"), validate_only=True),
            ),
        }
        """By method and path: the field as it is named in errors, and the request."""


# What a resource tells of itself, and no request changes.
_OF_A_KEY = {
    "identified.create_time",
    "identified.expire_time",
    "create_time",
    "revoke_time",
    "last_use_time",
    "secrets.create_time",
    "secrets.expire_time",
}
TOLD = {
    "ApiKeyService.CreateApiKey": _OF_A_KEY,
    "ApiKeyService.UpdateApiKey": _OF_A_KEY,
    "MachineUserService.UpdateMachineUser": {"create_time"},
    "MachineUserService.CreateMachineUser": {"create_time"},
    "MemberService.AddMember": {"create_time"},
    "MemberService.UpdateMember": {"create_time"},
    "TenantService.CreateTenant": {"create_time", "delete_time", "suspend_time", "purge_time"},
    "TenantService.UpdateTenant": {"create_time", "delete_time", "suspend_time", "purge_time"},
}  # fmt: skip
RESOURCES = {"api_key", "machine_user", "member", "tenant"}


@pytest.fixture
async def case(root: Client, fresh_id: str) -> Case:
    """The case."""
    tenant = await root.create_tenant("heyoo", fresh_id)
    owner = await root.add_member(tenant, "owner", "owner")
    return Case(tenant, owner, (await root.create_key(tenant, owner)).api_key.name)


async def call(root: Client, method: str, request: Message) -> str:
    """Call a method; answers the reason of its refusal, by field, or nothing."""
    descriptor = METHODS[method]
    multi: grpc.aio.UnaryUnaryMultiCallable[Message, Message] = root.channel.unary_unary(
        f"/{descriptor.containing_service.full_name}/{descriptor.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(descriptor.output_type).FromString,
    )
    try:
        await multi(request, timeout=20)
    except grpc.RpcError as error:
        problem = problem_of(error)
        assert problem.code not in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}
        return " ".join(f"{field}:{reason}" for field, reason in problem.fields.items()) or problem.reason
    return ""


async def test_each_field_is_bounded_at_both_ends(root: Client, case: Case, server: ServerProcess) -> None:
    refused = dict.fromkeys(case.read, 0)
    for method, descriptor in METHODS.items():
        for path, kind in fields(descriptor.input_type):
            known = case.read.get(f"{method}:{path}")
            # A new field is to be put into one of the two tables.
            told = {f"{resource}.{name}" for name in TOLD.get(method, ()) for resource in RESOURCES}
            assert known or path in told, f"is {method}:{path} bounded?"
            named, good = known or ("", GetMessageClass(descriptor.input_type)())
            for value in TIMES if kind == TIME else DURATIONS:
                request = type(good)()
                request.CopyFrom(good)
                put(request, path, value)
                found = await call(root, method, request)
                if known:
                    assert f" {named}:" in f" {found}", (method, path, value, found)
                    refused[f"{method}:{path}"] += 1
    assert all(refused.values()), refused
    assert not [line for line in server.output if "rpc.failed" in line]


async def test_the_last_moment_that_is_allowed_can_be_read_everywhere(root: Client, case: Case, fresh_id: str) -> None:
    tenant = f"products/heyoo/tenants/{fresh_id}"
    for time in (MAX_TIME, MAX_TIME - timedelta(microseconds=1)):
        created = await root.create_key(tenant, f"{tenant}/members/owner", expire_time=time)
        name = created.api_key.name
        assert created.api_key.expire_time.ToDatetime(UTC) == time
        assert await root.verdict(created.secret, "campaigns", "read") == "ALLOWED"
        rotated = await root.keys.RotateApiKey(
            api_key_service_pb2.RotateApiKeyRequest(name=name, grace=Duration(seconds=30 * 86_400)), timeout=10
        )
        for secret in (created.secret, rotated.secret):
            assert await root.verdict(secret, "campaigns", "read") == "ALLOWED"
        await root.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(name=name), timeout=10)
    await root.keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest(parent=tenant), timeout=10)
    await root.audit.ListAuditEvents(audit_service_pb2.ListAuditEventsRequest(parent=tenant), timeout=10)


async def test_a_duration_is_not_rounded_over_its_bound(root: Client, case: Case) -> None:
    day = 86_400
    for method, path, duration, is_refused in (
        ("ApiKeyService.CreateApiKey", "ttl", Duration(seconds=36_500 * day), False),
        ("ApiKeyService.CreateApiKey", "ttl", Duration(seconds=36_500 * day, nanos=1), True),
        ("ApiKeyService.RotateApiKey", "grace", Duration(seconds=30 * day), False),
        ("ApiKeyService.RotateApiKey", "grace", Duration(seconds=30 * day, nanos=1), True),
        ("CacheService.ReportUses", "uses.ago", Duration(seconds=day), False),
        ("CacheService.ReportUses", "uses.ago", Duration(seconds=day, nanos=1), True),
    ):
        _, good = case.read[f"{method}:{path}"]
        request = type(good)()
        request.CopyFrom(good)
        put(request, path, duration)
        assert bool(await call(root, method, request)) == is_refused, (method, duration)
