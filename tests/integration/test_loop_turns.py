"""How long the largest requests that are taken hold the event loop: never so long that others would notice.

Measured is the time on the processor, which what else runs beside the test hardly changes.
"""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from gatekey.core.decisions import RULES
from gatekey.core.invalidation_index import InvalidationIndex
from gatekey.core.secrets import Keyring, new_secret
from gatekey.v1 import (
    api_key_service_pb2,
    audit_service_pb2,
    cache_service_pb2,
    check_service_pb2,
    member_service_pb2,
    product_service_pb2,
    product_spec_pb2,
    tenant_service_pb2,
    types_pb2,
)
from gatekey_server.background.propagation_recorder import PropagationRecorder
from gatekey_server.background.uses import UsageRecorder
from gatekey_server.commands import bootstrap
from gatekey_server.freshness.change_log import ChangeLog
from gatekey_server.freshness.change_poller import ChangePoller
from gatekey_server.freshness.lease import PrimaryLease
from gatekey_server.freshness.propagation import PropagationBarrier
from gatekey_server.freshness.snapshot_source import SnapshotSource
from gatekey_server.rpc.context import Later, RequestContext, Response, utc_now
from gatekey_server.rpc.dispatcher import Endpoint
from gatekey_server.rpc.server import ServerDependencies, build_server
from gatekey_server.runtime.config import parse_peppers
from gatekey_server.store import products
from gatekey_server.store import snapshots as stored
from gatekey_server.store.database import Database, Share
from gatekey_server.store.products import CompiledSpecs
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from tests.support.databases import Databases
from tests.support.server import PEPPERS, read_example

pytestmark = pytest.mark.drill

MAX_TURN_S = 0.020
ATTEMPTS = 4

DEEP = "a/*/b/*/c/*/d"
IDS = "x" * 240
TOKEN = new_secret("gk_")


class Turns:
    """The longest turn of the loop."""

    def __init__(self) -> None:
        self.longest = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Look at every callback of every loop meanwhile."""
        run = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            began = time.thread_time()
            run(handle)
            self.longest = max(self.longest, time.thread_time() - began)

        asyncio.Handle._run = timed  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            asyncio.Handle._run = run  # type: ignore[method-assign]


class Program:
    """The parts of a server, which are called as the transport calls them."""

    def __init__(self, endpoints: Any, snapshots: SnapshotSource) -> None:
        self.endpoints = endpoints
        self.snapshots = snapshots

    def forget(self) -> None:
        """Have everything loaded anew."""
        for cache in (self.snapshots._known, self.snapshots._unknown):
            cache.clear()
        self.snapshots._specs = CompiledSpecs()
        stored._grants.cache_clear()
        products._compile.cache_clear()

    async def call(self, path: str, request: Message, answer: type[Any]) -> Any:
        """The answer of a method."""
        response = await self.send(path, request.SerializeToString())
        if isinstance(response, Response):
            assert response.code.name == "OK", response.message
            response = response.data
        return answer.FromString(response)

    async def send(self, path: str, data: bytes) -> bytes | Response:
        """What is sent back."""
        endpoint: Endpoint = self.endpoints[f"/gatekey.v1.{path}"]
        metadata = (("authorization", f"Bearer {TOKEN}"),)
        authorization, identity = endpoint.recognise(metadata), None
        if authorization is None:
            identity = await endpoint.identify(RequestContext(metadata))
        # As in the transport, where the request comes after this.
        await asyncio.sleep(0)
        answer = endpoint.answer_at_once(data, authorization) if authorization else None
        if isinstance(answer, bytes):
            return answer
        if isinstance(answer, Later):
            if answer.loading is not None:
                await answer.loading
            return await endpoint.answer_later(answer)
        if identity is None:
            identity = await endpoint.identify(RequestContext(metadata))
        return identity if isinstance(identity, Response) else await endpoint.serve(data, identity)


def large_spec(product: str, roles: int = 7) -> product_spec_pb2.ProductSpec:
    """About as much as a spec may have of everything."""
    spec = read_example("heyoo")
    spec.product, spec.secret_keys.prefix = product, f"{product}_"
    spec.collections.append(product_spec_pb2.Collection(pattern=DEEP, actions=["read", "write"]))
    spec.secret_keys.restricted.grantable.append(types_pb2.Grant(resource=DEEP, actions=["read", "write"]))
    for number in range(100):
        actions = [f"act{number}x{action}" for action in range(60)]
        spec.collections.append(product_spec_pb2.Collection(pattern=f"coll{number}/*/inner", actions=actions))
    for number in range(roles):
        role = product_spec_pb2.Role(role=f"role{number}", display_name=f"Role {number}")
        role.grants.extend(types_pb2.Grant(resource="*", actions=["read"]) for _ in range(1))
        role.grants.extend(
            types_pb2.Grant(resource=f"coll{n % 100}/id{n}/inner", actions=[f"act{n % 100}x{n % 60}"])
            for n in range(250)
        )
        spec.roles.append(role)
    return spec


def many_grants(number: int) -> list[types_pb2.Grant]:
    """As many grants as a key may have, with long resources."""
    return [
        types_pb2.Grant(resource=f"a/{IDS}/b/{IDS}/c/{number:04}{each:04}{IDS[8:]}/d", actions=["read", "write"])
        for each in range(256)
    ]


@pytest.fixture(scope="module")
async def program(databases: Databases) -> AsyncIterator[Program]:
    url = await databases.create()
    keyring = Keyring(parse_peppers(PEPPERS))
    async with Database.connect(url, max_connections=8, statement_timeout_s=30, acquire_timeout_s=30) as database:
        await bootstrap.prepare(database, keyring)
        await bootstrap.add_root_token(database, lambda _: keyring.seal(TOKEN), utc_now())
        history, log, lease = InvalidationIndex(), ChangeLog(), PrimaryLease()
        poller = ChangePoller(database.share(Share.CONTROL), history, log, lease)
        snapshots = SnapshotSource(database.share(Share.LOADS), history, lease, max_entries=100_000, max_bytes=10**9)
        usage = UsageRecorder(database.share(Share.BACKGROUND), 5)
        recorder = PropagationRecorder(
            database.share(Share.BACKGROUND), PropagationBarrier(database.share(Share.CONTROL), poller)
        )
        server = build_server(
            ServerDependencies(
                database, snapshots, log, lease, keyring, utc_now, usage, recorder, timedelta(days=1), None
            )
        )
        tasks = [asyncio.create_task(work()) for work in (poller.run, recorder.run)]
        await lease.wait_until_held()
        program = Program(server.endpoints, snapshots)
        yield program
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(scope="module")
async def keys(program: Program) -> list[str]:
    """Secrets of keys with as many grants as a key may have."""
    request: Message = product_service_pb2.ApplyProductRequest(spec=large_spec("large"))
    await program.call("ProductService/ApplyProduct", request, product_service_pb2.Product)
    request = tenant_service_pb2.CreateTenantRequest(parent="products/large", tenant_id="acme")
    await program.call("TenantService/CreateTenant", request, tenant_service_pb2.Tenant)
    for member in ("owner", "other"):
        request = member_service_pb2.AddMemberRequest(
            parent="products/large/tenants/acme", member_id=member, member=member_service_pb2.Member(role="owner")
        )
        await program.call("MemberService/AddMember", request, member_service_pb2.Member)
    made = []
    for number in range(40):
        request = a_key(number, "other")
        created = await program.call("ApiKeyService/CreateApiKey", request, api_key_service_pb2.CreateApiKeyResponse)
        made.append(created.secret)
    # What it may not do is told at length.
    other = member_service_pb2.Member(name="products/large/tenants/acme/members/other", role="member")
    request = member_service_pb2.UpdateMemberRequest(member=other, update_mask=FieldMask(paths=["role"]))
    await program.call("MemberService/UpdateMember", request, member_service_pb2.Member)
    return made


def a_key(number: int, owner: str = "owner") -> api_key_service_pb2.CreateApiKeyRequest:
    return api_key_service_pb2.CreateApiKeyRequest(
        parent="products/large/tenants/acme",
        api_key=api_key_service_pb2.ApiKey(
            display_name="Large",
            owner=f"products/large/tenants/acme/members/{owner}",
            mode=types_pb2.ACCESS_MODE_RESTRICTED,
            grants=many_grants(number),
        ),
    )


def checks(keys: list[str], number: int) -> check_service_pb2.BatchCheckRequest:
    """1000 questions, each with a resource that no other has, and with the longest refusal."""
    return check_service_pb2.BatchCheckRequest(
        checks=[
            check_service_pb2.CheckRequest(
                key=keys[each % len(keys)],
                resource=f"a/{IDS}/b/{IDS}/c/{each:04}{number:04}{IDS[8:]}/d",
                action="write",
            )
            for each in range(1000)
        ]
    )


Case = Callable[[int, list[str]], tuple[str, Message]]
CASES: dict[str, Case] = {
    "CreateApiKey": lambda number, _: ("ApiKeyService/CreateApiKey", a_key(number + 100)),
    "ApplyProduct, new": lambda number, _: (
        "ProductService/ApplyProduct",
        product_service_pb2.ApplyProductRequest(spec=large_spec(f"new{number}")),
    ),
    "ApplyProduct, changed": lambda number, _: (
        "ProductService/ApplyProduct",
        product_service_pb2.ApplyProductRequest(spec=large_spec("large", 6 - number)),
    ),
    "ListAuditEvents": lambda *_: (
        "AuditService/ListAuditEvents",
        audit_service_pb2.ListAuditEventsRequest(parent="products/large", page_size=1000),
    ),
    "ListAuditEvents of a tenant": lambda *_: (
        "AuditService/ListAuditEvents",
        audit_service_pb2.ListAuditEventsRequest(parent="products/large/tenants/acme", page_size=1000),
    ),
    "ListApiKeys": lambda *_: (
        "ApiKeyService/ListApiKeys",
        api_key_service_pb2.ListApiKeysRequest(parent="products/large/tenants/acme", page_size=1000),
    ),
    "ListProducts": lambda *_: ("ProductService/ListProducts", product_service_pb2.ListProductsRequest(page_size=1000)),
    "GetProduct": lambda *_: (
        "ProductService/GetProduct",
        product_service_pb2.GetProductRequest(name="products/large"),
    ),
    "Resolve": lambda _, keys: (
        "CacheService/Resolve",
        cache_service_pb2.ResolveRequest(keys=(keys * 25)[:1000], rules=RULES),
    ),
    "Resolve of unknown keys": lambda *_: (
        "CacheService/Resolve",
        cache_service_pb2.ResolveRequest(keys=[new_secret("hey_") for _ in range(1000)], rules=RULES),
    ),
    "BatchCheck": lambda number, keys: ("CheckService/BatchCheck", checks(keys, number)),
    "BatchCheck, cold": lambda number, keys: ("CheckService/BatchCheck", checks(keys, number)),
    "Resolve, cold": lambda _, keys: (
        "CacheService/Resolve",
        cache_service_pb2.ResolveRequest(keys=keys, rules=RULES),
    ),
    "BatchCheck of unknown keys": lambda number, _: (
        "CheckService/BatchCheck",
        checks([new_secret("hey_") for _ in range(1000)], number),
    ),
    "BatchCheck of one key": lambda number, keys: ("CheckService/BatchCheck", checks(keys[:1], number)),
    "BatchCheck again": lambda _, keys: ("CheckService/BatchCheck", checks(keys, 0)),
    "BatchCheck of nonsense": lambda number, keys: (
        "CheckService/BatchCheck",
        check_service_pb2.BatchCheckRequest(
            checks=[
                check_service_pb2.CheckRequest(key=keys[0], resource=f"{number}/{each}/" + "/" * 900, action="w")
                for each in range(1000)
            ]
        ),
    ),
    "ReportUses": lambda number, _: (
        "CacheService/ReportUses",
        cache_service_pb2.ReportUsesRequest(
            uses=[
                cache_service_pb2.KeyUse(api_key=f"products/large/tenants/acme/apiKeys/key_{number:04}{each:022}")
                for each in range(1000)
            ]
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_no_request_holds_the_loop_for_long(case: str, program: Program, keys: list[str]) -> None:
    longest = []
    for number in range(ATTEMPTS):
        path, request = CASES[case](number, keys)
        data, turns = request.SerializeToString(), Turns()
        del request
        if case.endswith("cold"):
            program.forget()
        gc.collect()
        with turns.measured():
            response = await asyncio.create_task(program.send(path, data))
        assert not isinstance(response, Response) or response.code.name == "OK", response.message
        longest.append(turns.longest)
    assert min(longest) < MAX_TURN_S, longest
