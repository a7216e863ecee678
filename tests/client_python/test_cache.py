"""The client cache: checks that are decided in the client are right, and no fresher or staler than it is promised."""

import asyncio
import dataclasses
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import gatekey
import grpc
import pytest
from gatekey import _fork_hooks, decisions
from gatekey._cache import sync as cache_sync
from gatekey._cache.lookup import LocalCache
from gatekey._cache.sync import CacheSync
from gatekey.core import clock
from gatekey.core.decisions import RULES
from gatekey.core.lease import LEASE_S, MAX_REMOTE_LEASE_S
from gatekey.core.names import format_key_id
from gatekey.core.secrets import new_secret
from gatekey.v1 import api_key_service_pb2, cache_service_pb2_grpc, types_pb2
from gatekey.v1 import cache_service_pb2 as pb

from tests.client_python.network import Way
from tests.client_python.support import PRODUCT, Shop, made, open_shop, opened
from tests.support.fixtures import TABLE, Fixtures
from tests.support.server import Client, environment, problem_of, read_example
from tests.support.table import Caller

QUESTION = ("campaigns/c1", "read")
KINDS = ("threads", "event loop")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of client."""
    return str(request.param)


@pytest.fixture
async def client(kind: str, root: Client, root_token: str) -> AsyncIterator[Any]:
    """A client with a cache."""
    async with opened(kind, root.address, token=root_token, cache=True) as client:
        yield client


def recalled(client: Any, key: str, resource: str = QUESTION[0], action: str = QUESTION[1]) -> gatekey.Decision | None:
    """What the client decides by itself."""
    decision: gatekey.Decision | None = client._local_cache.recall(key, resource, action, None, None, 0)
    return decision


def is_known(client: Any, key: str) -> bool:
    """Whether the client decides by itself about a key."""
    return recalled(client, key) is not None


async def eventually(condition: Callable[[], object], step: Callable[[], Awaitable[object]] | None = None) -> None:
    """Wait until a condition holds, doing a step again and again."""
    async with asyncio.timeout(20):
        while not condition():
            if step is not None:
                await step()
            await asyncio.sleep(0.01)


async def learn(client: Any, *keys: str) -> None:
    """Have the client know keys."""
    for key in keys:
        await eventually(partial(is_known, client, key), partial(made, client.check, key, *QUESTION))


# ---------------------------------------------------------------- decisions


@pytest.mark.slow
async def test_local_decisions_are_those_of_the_server(fixtures: Fixtures) -> None:
    """Every case of the table: what the client decides by itself, and what the server answers, in every field."""
    wrong, local, refused = {}, 0, 0
    for (caller, _), asking in fixtures.callers.items():
        cases = [case for case in TABLE.cases if fixtures.caller(case) is asking]
        questions = [fixtures.question(case) for case in cases]
        async with (
            opened("threads", asking.address, token=asking.token, cache=True) as local_cache,
            opened("event loop", asking.address, token=asking.token, timeout=20) as far,
        ):
            if caller is not Caller.ADMINISTRATOR:
                keys = {request.key for request in questions if request.key}
                for key in keys:
                    local_cache._runner.want(key)
                await learn(local_cache, *keys)
            asked_far = [
                gatekey.Question(each.key, each.resource, each.action, each.tenant if each.HasField("tenant") else None)
                for each in questions
            ]
            answers = dict(zip((case.id for case in cases), await far.check_many(asked_far), strict=True))
            for case, request in zip(cases, questions, strict=True):
                asked = (request.key, request.resource, request.action)
                tenant = request.tenant if request.HasField("tenant") else None
                decision = local_cache._local_cache.recall(*asked, tenant, None, 0)
                if case.refused or caller is Caller.ADMINISTRATOR:
                    # Only the server says what is wrong with a question, and what a token that may check nothing gets.
                    assert decision is None
                    refused += 1
                    continue
                answer = answers[case.id]
                local += 1
                # The second time it is remembered.
                again = local_cache._local_cache.recall(*asked, tenant, None, 0)
                if not _without_revision(decision) == _without_revision(again) == _without_revision(answer):
                    wrong[case.id] = (decision, again, answer)
    assert not wrong
    assert local > 350
    assert refused > 20


def _without_revision(decision: gatekey.Decision | None) -> gatekey.Decision | None:
    # Not by its truth, which is that it allows.
    return None if decision is None else dataclasses.replace(decision, revision=0)


async def test_questions_are_answered_by_either_side_alike(
    client: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await learn(client, shop.key, shop.reader)
    questions = [
        gatekey.Question(shop.key, "campaigns/c1", "read"),
        gatekey.Question(shop.reader, "campaigns/c1", "write"),
        gatekey.Question(shop.key, "campaigns/c1", "!"),
        gatekey.Question(shop.key, "campaigns", "read", min_revision=1 << 60),
        gatekey.Question("\udc80", "campaigns", "read"),
        gatekey.Question(shop.key, "campaigns/c2", "read", product="bitsy"),
    ]
    assert not recalled(client, shop.reader, "campaigns/c1", "write")
    sent: list[gatekey.Question] = []
    write = decisions.try_to_write

    def write_and_tell(question: gatekey.Question) -> Any:
        sent.append(question)
        return write(question)

    monkeypatch.setattr(decisions, "try_to_write", write_and_tell)
    allowed, denied, invalid, later, text, other = await made(client.check_many, questions, timeout=10)
    assert sent == questions[2:5], "all others are decided by the cache, denied or not"
    assert allowed.allowed
    assert denied.missing_permissions == (gatekey.Permission("campaigns/c1", "write"),)
    assert [each.error.reason for each in (invalid, later, text)] == [
        "ACTION_INVALID", "REVISION_NOT_REACHED", "TEXT_INVALID",
    ]  # fmt: skip
    assert other.reason is gatekey.Reason.KEY_UNKNOWN
    with pytest.raises(gatekey.AccessDenied):
        await made(client.require, shop.reader, "campaigns/c1", "write")


async def test_an_unknown_key_is_remembered_as_such_and_only_so_many(
    kind: str, root: Client, root_token: str, shop: Shop
) -> None:
    options = {"token": root_token, "cache": gatekey.Cache(entries=20)}
    async with opened(kind, root.address, **options) as client:
        await learn(client, shop.key)
        unknown = [new_secret("hey_") for _ in range(10)]
        await learn(client, *unknown)
        assert len(client._local_cache._unknown) == 2
        decision = recalled(client, unknown[-1])
        assert decision is not None
        assert decision.reason is gatekey.Reason.KEY_UNKNOWN
        assert recalled(client, shop.key), "those that exist are not displaced"
        # What cannot be a secret takes no room at all.
        assert _without_revision(recalled(client, "hey_nonsense")) == _without_revision(decision)
        assert len(client._local_cache._unknown) == 2
        assert recalled(client, "") is None


async def test_it_holds_no_more_keys_than_it_may(kind: str, root: Client, root_token: str, shop: Shop) -> None:
    async with opened(kind, root.address, token=root_token, cache=gatekey.Cache(entries=5)) as client:
        tenant = f"products/{PRODUCT}/tenants/{shop.tenant}"
        keys = [(await root.create_key(tenant, shop.owner)).secret for _ in range(8)]
        for key in keys:
            await learn(client, key)
        assert len(client._local_cache._known) <= 5
    for wrong in (gatekey.Cache(entries=0), gatekey.Cache(stale_s=-1)):
        with pytest.raises(ValueError, match="client cache"):
            gatekey.Client(token="gk_x", cache=wrong)


async def test_expiry_is_judged_by_the_time_since_it_was_told(
    client: Any, root: Client, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    expire_time = datetime.now(UTC) + timedelta(hours=1)
    tenant = f"products/{PRODUCT}/tenants/{shop.tenant}"
    key = (await root.create_key(tenant, shop.owner, expire_time=expire_time)).secret
    await learn(client, key)
    now, begin = clock.now, clock.now()
    client._local_cache._lease.until = float("inf")
    client._runner._sync._renewer.due_at = float("inf")
    for later, is_known in ((0.0, True), (3400.0, True), (3599.0, False), (3601.0, False)):
        monkeypatch.setattr(clock, "now", lambda later=later: now() + later)
        assert (recalled(client, key) is not None) == is_known, later
        assert recalled(client, new_secret("hey_")[:-1]) is not None, "the lease is not what ends"
    assert clock.now() > begin


# ---------------------------------------------------------------- the promise


@asynccontextmanager
async def blind_clients(root: Client, token: str, *keys: str) -> AsyncIterator[list[Any]]:
    """Clients that know keys, and at the end of their way there is nothing any more: they do not hear of changes."""
    async with Way(root.address) as jammed, Way(root.address) as cut:
        options = {"token": token, "cache": True, "timeout": 0.2}
        async with (
            opened("threads", jammed.address, **options) as one,
            opened("event loop", jammed.address, **options) as two,
            opened("event loop", cut.address, **options) as three,
        ):
            clients = [one, two, three]
            for client in clients:
                await learn(client, *keys)
            jammed.jam()
            await cut.close()
            yield clients
            jammed.clear()


@pytest.mark.slow
async def test_after_a_change_everywhere_nobody_allows_what_it_forbids(
    root: Client, root_token: str, fresh_id: str
) -> None:
    """All ways to take something away; by clients that hear of none of it."""
    shops = [await open_shop(root, f"{fresh_id}{number}") for number in range(8)]
    async with (
        blind_clients(root, root_token, *(shop.key for shop in shops)) as clients,
        opened("event loop", root.address, token=root_token) as admin,
    ):
        tenants = [admin.tenant(PRODUCT, shop.tenant) for shop in shops]
        await tenants[4].members.add("second", "owner")

        async def changed(shop: Shop, change: Awaitable[object]) -> float:
            started_at = time.monotonic()
            await change
            for client in clients:
                with pytest.raises((gatekey.Unavailable, gatekey.DeadlineExceeded)):
                    await made(client.check, shop.key, *QUESTION)
            return time.monotonic() - started_at

        everywhere = gatekey.EVERYWHERE
        changes = [
            tenants[0].keys.revoke(shops[0].name, wait=everywhere),
            tenants[1].keys.disable(shops[1].name, wait=everywhere),
            tenants[2].keys.delete(shops[2].name, wait=everywhere),
            tenants[3].keys.rotate(shops[3].name, wait=everywhere),
            tenants[4].members.remove("owner", wait=everywhere),
            tenants[5].keys.update(shops[5].name, grants={"tags": ["read"]}, mode="RESTRICTED", wait=everywhere),
            admin.product(PRODUCT).tenants.suspend(shops[6].tenant, wait=everywhere),
            admin.product(PRODUCT).tenants.delete(shops[7].tenant, wait=everywhere),
        ]
        # Until then they do answer: what is shown is not that they answer nothing at all.
        answered = [recalled(client, shop.key) for client in clients for shop in shops]
        assert all(answered)
        waited = await asyncio.gather(*map(changed, shops, changes))
        assert min(waited) > LEASE_S


async def test_a_change_that_does_not_wait_returns_before(root: Client, root_token: str, shop: Shop) -> None:
    """What the test before guards against: what would be found if nobody waited."""
    async with (
        blind_clients(root, root_token, shop.key) as clients,
        opened("event loop", root.address, token=root_token) as admin,
    ):
        await admin.tenant(PRODUCT, shop.tenant).keys.revoke(shop.name)
        assert all(recalled(client, shop.key) for client in clients)


async def test_changes_come_by_themselves(client: Any, root: Client, shop: Shop) -> None:
    await learn(client, shop.key, shop.reader)
    async with opened("event loop", root.address, token=root.token) as admin:
        await admin.tenant(PRODUCT, shop.tenant).keys.revoke(shop.name)
    revoked_at = time.monotonic()
    await eventually(lambda: recalled(client, shop.key) is None)
    assert time.monotonic() - revoked_at < MAX_REMOTE_LEASE_S
    assert recalled(client, shop.reader), "of nothing else"
    assert (await made(client.check, shop.key, *QUESTION)).reason is gatekey.Reason.KEY_REVOKED


class Wire:
    """Stands in for the server: answers calls of a cache as it is told to, at times that the test chooses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.local_cache = LocalCache(100, 0)
        self.protocol = CacheSync(self.local_cache)
        self.renewer = self.protocol._renewer
        monkeypatch.setattr(clock, "now", lambda: self.now)

    def sync(self, *, takes_s: float = 0, **fields: Any) -> None:
        """One `Sync`, which takes a time."""
        self.renewer.due_at = self.now
        work = self.protocol.work()
        call = next(work)
        assert isinstance(call.request, pb.SyncRequest)
        self.now += takes_s
        answer = pb.SyncResponse(**{"revision": 5, "reset": True, "cursor": b"c", **fields})
        answer.lease.FromMilliseconds(int(LEASE_S * 1000))
        try:
            work.send(answer)
        except StopIteration:
            return

    def learn(self, key: str, revision: int, *, meanwhile: Callable[[], None] = lambda: None) -> None:
        """One `Resolve` of a key that may do everything."""
        self.protocol.want(key)
        self.renewer.due_at = float("inf")
        work = self.protocol.work()
        call = next(work)
        assert isinstance(call.request, pb.ResolveRequest)
        # By which a server that is in another history is found out.
        assert call.request.cursor == self.renewer.cursor
        meanwhile()
        spec = read_example(PRODUCT)
        answer = pb.ResolveResponse(specs=[pb.ResolvedSpec(id=b"spec", spec=spec)])
        owner = pb.ResolvedOwner(member="owner", role="owner", scope=3)
        answer.results.add(revision=revision).key.CopyFrom(
            pb.ResolvedKey(
                spec=b"spec",
                tenant="acme",
                api_key="key_1",
                kind=types_pb2.KEY_KIND_SECRET,
                mode=types_pb2.ACCESS_MODE_ALL,
                owner=owner,
                key_scope=KEY,
                tenant_scope=4,
            )
        )
        try:
            work.send(answer)
        except StopIteration:
            return

    def allows(self, key: str) -> bool | None:
        """What the cache decides; None: nothing."""
        decision = self.local_cache.recall(key, *QUESTION, None, None, 0)
        return None if decision is None else decision.allowed


KEY = bytes(range(16))
SECRET = new_secret("hey_")


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """A cache and what it asks."""
    return Wire(monkeypatch)


def test_the_lease_counts_from_before_the_question(wire: Wire) -> None:
    """However long the answer takes. That this matters is shown by `make chaos` without the guard `client-clock`."""
    wire.sync(takes_s=0.9)
    wire.learn(SECRET, 5)
    wire.now = 1000 + LEASE_S - 0.001
    assert wire.allows(SECRET)
    wire.now = 1000 + LEASE_S
    assert wire.allows(SECRET) is None


def test_a_lease_is_never_longer_than_the_servers(wire: Wire) -> None:
    wire.sync()
    wire.local_cache._lease.until = 0
    work = wire.renewer.renew()
    next(work)
    answer = pb.SyncResponse(revision=6, cursor=b"c")
    answer.lease.FromSeconds(100)
    with pytest.raises(StopIteration):
        work.send(answer)
    assert wire.local_cache._lease.until == wire.now + LEASE_S


@pytest.mark.parametrize(
    "change",
    [
        {"key": KEY},
        {"principal": 3},
        {"tenant": 4},
        {"product": PRODUCT},
        {},
    ],
    ids=str,
)
def test_a_change_of_any_of_its_scopes_ends_a_snapshot(wire: Wire, change: dict[str, Any]) -> None:
    wire.sync()
    wire.learn(SECRET, 5)
    wire.sync(reset=False, revision=6, changes=[pb.ScopeChange(revision=6, key=bytes(16))])
    assert wire.allows(SECRET)
    wire.sync(reset=False, revision=7, changes=[pb.ScopeChange(revision=7, **change)])
    assert wire.allows(SECRET) is None
    # What was read before the change and comes after it is no better.
    wire.learn(SECRET, 6)
    assert wire.allows(SECRET) is None
    wire.learn(SECRET, 7)
    assert wire.allows(SECRET)


def test_a_decision_is_as_of_the_revision_that_was_asked_for(wire: Wire) -> None:
    wire.sync()
    wire.learn(SECRET, 5)
    assert wire.allows(SECRET)
    wire.sync(reset=False, revision=7)
    asked = (SECRET, *QUESTION, None, None)
    decision = wire.local_cache.recall(*asked, 7)
    assert decision is not None
    assert (decision.allowed, decision.revision) == (True, 7)
    assert wire.local_cache.recall(*asked, 8) is None


def test_a_reset_drops_everything_and_what_is_on_its_way(wire: Wire) -> None:
    wire.sync()
    wire.learn(SECRET, 5)
    wire.sync(revision=5)
    assert wire.allows(SECRET) is None
    # Of a history that is over, even with a greater number.
    wire.learn(SECRET, 9, meanwhile=lambda: wire.sync(revision=4))
    assert wire.allows(SECRET) is None
    assert len(wire.local_cache._known) == 0


def test_what_was_read_before_a_time_without_a_lease_and_never_heard_of_is_dropped(wire: Wire) -> None:
    """There may have been a failover that lost it."""
    wire.sync()
    wire.learn(SECRET, 9)
    assert wire.allows(SECRET)
    wire.now += LEASE_S
    wire.sync(reset=False, revision=6)
    assert wire.allows(SECRET) is None


def test_what_was_read_and_never_heard_of_is_dropped_after_a_failover(wire: Wire) -> None:
    wire.sync()
    wire.learn(SECRET, 9)
    wire.sync(reset=False, revision=6)
    assert wire.allows(SECRET)
    wire.sync(reset=False, revision=7, failed_over=True)
    assert wire.allows(SECRET) is None


def test_a_server_that_is_behind_is_asked_anew_only_without_a_lease(wire: Wire) -> None:
    wire.sync()
    for later, cursor in ((0.5, b"c"), (LEASE_S, b"")):
        wire.now = 1000 + later
        work = wire.renewer.renew()
        assert cast("pb.SyncRequest", next(work).request).cursor == b"c"
        with pytest.raises(StopIteration):
            work.throw(gatekey.Unavailable("behind", "REVISION_NOT_REACHED"))
        assert wire.renewer.cursor == cursor


def test_a_token_that_is_refused_ends_the_lease(wire: Wire) -> None:
    for error in (gatekey.Unauthenticated("no"), gatekey.PermissionDenied("no"), gatekey.InternalError("no")):
        wire.sync()
        wire.learn(SECRET, 5)
        assert wire.allows(SECRET)
        work = wire.renewer.renew()
        next(work)
        with pytest.raises(StopIteration):
            work.throw(error)
        assert wire.allows(SECRET) is None


# ---------------------------------------------------------------- what a client is told


async def uses(root: Client, sql: Any, shop: Shop, since: datetime) -> list[str]:
    """Which keys of a tenant are said to have been used since; what was reported before this is taken down."""
    # The first use of a key is written down at once, and all others with it.
    tenant = f"products/{PRODUCT}/tenants/{shop.tenant}"
    fresh = await root.create_key(tenant, shop.owner)
    assert await root.verdict(fresh.secret, *QUESTION) == "ALLOWED"
    query = """
        select key_uid from key_usage join tenant using (tenant_uid) where tenant_id = $1 and last_use_time > $2
    """
    async with asyncio.timeout(30):
        while True:
            rows = await sql.fetch(query, shop.tenant, since)
            names = [f"{tenant}/apiKeys/{format_key_id(row['key_uid'])}" for row in rows]
            if fresh.api_key.name in names:
                return [name for name in names if name != fresh.api_key.name]
            await asyncio.sleep(0.01)


@asynccontextmanager
async def cache_stub(root: Client, grants: dict[str, list[str]]) -> AsyncIterator[Any]:
    """The service, for a token with these grants."""
    other = root.with_token(await root.create_token(grants))
    try:
        yield cache_service_pb2_grpc.CacheServiceStub(other.channel)
    finally:
        await other.close()


async def test_a_narrow_token_resolves_only_what_it_may_check(root: Client, shop: Shop) -> None:
    assert root.token is not None
    request = pb.ResolveRequest(keys=[shop.key, new_secret("hey_"), root.token], rules=RULES)
    async with cache_stub(root, {f"products/{PRODUCT}/checks": ["create"]}) as stub:
        known, unknown, token = (await stub.Resolve(request)).results
        assert known.key.tenant == shop.tenant
        assert not known.secret_scopes
    async with cache_stub(root, {"products/bitsy/checks": ["create"]}) as stub:
        # Not to be told from one that does not exist.
        results = list((await stub.Resolve(request)).results)
        assert [result.secret_scopes for result in (unknown, token)] == [result.secret_scopes for result in results[1:]]
        for result in results:
            assert [field.name for field, _ in result.ListFields()] == ["revision", "secret_scopes"]
        assert (await stub.Sync(pb.SyncRequest())).cursor
    async with cache_stub(root, {f"products/{PRODUCT}/tenants": ["*"]}) as stub:
        assert not any(result.HasField("key") for result in (await stub.Resolve(request)).results)
        for call in (
            stub.Sync(pb.SyncRequest()),
            stub.ReportUses(pb.ReportUsesRequest(uses=[pb.KeyUse(api_key=shop.name)])),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                await call
            assert problem_of(raised.value).reason == "PERMISSION_MISSING"


async def test_a_server_in_another_history_resolves_nothing(root: Client, shop: Shop) -> None:
    async with cache_stub(root, {f"products/{PRODUCT}/checks": ["create"]}) as stub:
        cursor = (await stub.Sync(pb.SyncRequest())).cursor
        request = pb.ResolveRequest(keys=[shop.key], rules=RULES, cursor=cursor)
        assert (await stub.Resolve(request)).results[0].HasField("key")
        revision, stamp = cursor[:8], cursor[8:24]
        for elsewhere in (revision + bytes(reversed(stamp)), b"\x7f" + revision[1:] + stamp):
            request.cursor = elsewhere + cursor[24:]
            with pytest.raises(grpc.RpcError) as raised:
                await stub.Resolve(request)
            assert problem_of(raised.value).reason == "REVISION_NOT_REACHED"


async def test_changes_name_no_scopes_of_others(root: Client, shop: Shop, fresh_id: str) -> None:
    """Names of scopes are those of the snapshots that were resolved; others mean nothing to whoever hears them."""
    request = pb.ResolveRequest(keys=[shop.key], rules=RULES)
    async with cache_stub(root, {f"products/{PRODUCT}/checks": ["create"]}) as stub:
        (mine,) = (await stub.Resolve(request)).results
        cursor = (await stub.Sync(pb.SyncRequest())).cursor
        product = read_example("bitsy")
        product.product, product.secret_keys.prefix = fresh_id, f"{fresh_id}_"
        product.ClearField("publishable_keys")
        await root.apply(product)
        other = await root.create_tenant(fresh_id, "acme")
        await root.add_member(other, "owner", "owner")
        key = await root.create_key(other, mode="RESTRICTED", grants={"*": ["read"]})
        async with opened("event loop", root.address, token=root.token) as admin:
            await admin.tenant(PRODUCT, shop.tenant).keys.disable(shop.name)
        answer = await stub.Sync(pb.SyncRequest(cursor=cursor))
        assert not answer.reset
        assert mine.key.key_scope in {change.key for change in answer.changes}
        assert not any(change.product == fresh_id for change in answer.changes)
        told = answer.SerializeToString()
        for text in (fresh_id, "acme", "owner", key.api_key.name.rsplit("/", 1)[1], key.secret):
            assert text.encode() not in told
        assert (await stub.Sync(pb.SyncRequest(cursor=answer.cursor))).changes == []
    async with cache_stub(root, {f"products/{fresh_id}/checks": ["create"]}) as stub:
        assert (await stub.Sync(pb.SyncRequest(cursor=cursor))).reset, "another token, with other rights"


@pytest.mark.slow
async def test_what_a_token_may_no_longer_check_is_forgotten(root: Client, shop: Shop) -> None:
    system = "products/gatekey/tenants/system"
    both = {f"products/{name}/checks": ["create"] for name in (PRODUCT, "bitsy")}
    narrowed, revoked = [
        await root.create_key(system, mode="RESTRICTED", grants=both, new_machine_user=True) for _ in range(2)
    ]
    async with (
        opened("threads", root.address, token=narrowed.secret, cache=True) as one,
        opened("event loop", root.address, token=revoked.secret, cache=True) as two,
        opened("event loop", root.address, token=root.token) as admin,
    ):
        await learn(one, shop.key)
        await learn(two, shop.key)
        keys = admin.tenant("gatekey", "system").keys
        fewer = {"products/bitsy/checks": ["create"]}
        await asyncio.gather(
            keys.update(narrowed.api_key.name, grants=fewer, mode="RESTRICTED", wait=gatekey.EVERYWHERE),
            keys.revoke(revoked.api_key.name, wait=gatekey.EVERYWHERE),
        )
        assert (await made(one.check, shop.key, *QUESTION)).reason is gatekey.Reason.KEY_UNKNOWN
        await learn(one, shop.key)
        with pytest.raises(gatekey.Unauthenticated):
            await made(two.check, shop.key, *QUESTION)


async def test_a_client_with_other_rules_is_told_nothing(client: Any, shop: Shop, monkeypatch: Any) -> None:
    monkeypatch.setattr(cache_sync, "RULES", RULES + 1)
    await eventually(lambda: client._local_cache.has_lease, lambda: made(client.check, shop.key, *QUESTION))
    for _ in range(5):
        assert await made(client.check, shop.key, *QUESTION)
    assert recalled(client, shop.key) is None


async def test_requests_to_the_cache_service_are_bounded(root: Client) -> None:
    async with cache_stub(root, {"products": ["create"]}) as stub:
        for call, reason in (
            (stub.Resolve(pb.ResolveRequest(rules=RULES)), "KEYS_COUNT_INVALID"),
            (stub.Resolve(pb.ResolveRequest(keys=["x"] * 1001, rules=RULES)), "KEYS_COUNT_INVALID"),
            (stub.Resolve(pb.ResolveRequest(keys=["x"], known_specs=[b"x"] * 257)), "SPECS_COUNT_INVALID"),
            (stub.Resolve(pb.ResolveRequest(keys=["x"])), "RULES_UNKNOWN"),
            (stub.ReportUses(pb.ReportUsesRequest()), "USES_COUNT_INVALID"),
            (stub.ReportUses(pb.ReportUsesRequest(uses=[pb.KeyUse(api_key="x")])), "NAME_INVALID"),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                await call
            assert problem_of(raised.value).reason == reason
        nonsense = await stub.Sync(pb.SyncRequest(cursor=b"nonsense"))
        assert nonsense.reset


async def test_a_wait_for_something_else_is_refused(root: Client, shop: Shop) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        await root.keys.DisableApiKey(
            api_key_service_pb2.DisableApiKeyRequest(name=shop.name), metadata=(("gatekey-wait", "somewhere"),)
        )
    assert problem_of(raised.value).fields == {"gatekey-wait": "WAIT_INVALID"}


# ---------------------------------------------------------------- uses


async def test_uses_are_reported(
    kind: str, root: Client, root_token: str, shop: Shop, sql: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the latest when the client is closed."""
    monkeypatch.setattr(cache_sync, "REPORT_S", 3600.0)
    async with opened(kind, root.address, token=root_token, cache=True) as client:
        await learn(client, shop.key, shop.reader)
        client._local_cache._used = {}
        before = datetime.now(UTC)
        assert recalled(client, shop.key)
        assert not recalled(client, shop.reader, "campaigns/c1", "write"), "a denial is no use"
    assert await uses(root, sql, shop, before) == [shop.name]


def test_a_use_is_reported_as_long_ago_as_it_was(wire: Wire) -> None:
    wire.sync()
    wire.learn(SECRET, 5)
    assert wire.allows(SECRET)
    wire.now += 1.5
    assert wire.allows(SECRET)
    wire.now += 7
    work = wire.protocol.report()
    (use,) = cast("pb.ReportUsesRequest", next(work).request).uses
    assert (use.ago.ToMilliseconds(), use.api_key) == (7000, f"products/{PRODUCT}/tenants/acme/apiKeys/key_1")
    # One that could not be told is told the next time, unless there was another one since.
    with pytest.raises(StopIteration):
        work.throw(gatekey.Unavailable("away"))
    wire.now += 1
    (use,) = cast("pb.ReportUsesRequest", next(wire.protocol.report()).request).uses
    assert use.ago.ToMilliseconds() == 8000
    assert not list(wire.protocol.report())


async def test_uses_of_keys_that_it_may_not_check_are_not_taken_down(root: Client, shop: Shop, sql: Any) -> None:
    before = datetime.now(UTC) - timedelta(minutes=1)
    tenant = f"products/{PRODUCT}/tenants/{shop.tenant}"
    used = (await root.create_key(tenant, shop.owner)).api_key.name
    for product, name in (("bitsy", shop.name), (PRODUCT, used), (PRODUCT, shop.name.replace(shop.tenant, "nobody"))):
        async with cache_stub(root, {f"products/{product}/checks": ["create"]}) as stub:
            await stub.ReportUses(pb.ReportUsesRequest(uses=[pb.KeyUse(api_key=name)]))
    assert await uses(root, sql, shop, before) == [used]


# ---------------------------------------------------------------- the life of a client


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "stale_s"), [("threads", 0.0), ("event loop", 30.0)])
async def test_without_a_server_there_is_no_decision_unless_stale_ones_are_wanted(
    kind: str, root: Client, root_token: str, shop: Shop, stale_s: float
) -> None:
    async with Way(root.address) as way:
        options = {"token": root_token, "timeout": 0.3, "cache": gatekey.Cache(stale_s=stale_s)}
        async with opened(kind, way.address, **options) as client:
            await learn(client, shop.key)
            assert not (await made(client.check, shop.key, *QUESTION)).stale
            await way.close()
            await eventually(lambda: client._local_cache.unreachable)
            client._local_cache._lease.until = clock.now()
            if stale_s:
                last_known = await made(client.check, shop.key, *QUESTION)
                assert (last_known.allowed, last_known.stale) == (True, True)
                not_a_key = await made(client.check, "no key", *QUESTION)
                assert (not_a_key.allowed, not_a_key.stale) == (False, True)
                client._local_cache._lease.until = clock.now() - stale_s
            with pytest.raises((gatekey.Unavailable, gatekey.DeadlineExceeded)):
                await made(client.check, shop.key, *QUESTION)


@pytest.mark.slow
async def test_it_goes_on_when_the_server_is_back(kind: str, root: Client, root_token: str, shop: Shop) -> None:
    """With what it knew: a time without a lease alone makes nothing wrong."""
    async with (
        Way(root.address) as way,
        opened(kind, way.address, token=root_token, cache=True, timeout=0.3) as client,
    ):
        await learn(client, shop.key)
        resets = client._local_cache._index.resets
        way.jam()
        client._local_cache._lease.until = clock.now()
        with pytest.raises(gatekey.DeadlineExceeded):
            await made(client.check, shop.key, *QUESTION)
        way.clear()
        await eventually(lambda: recalled(client, shop.key), lambda: asyncio.sleep(0.05))
        assert client._local_cache._index.resets == resets


@pytest.mark.slow
async def test_it_rests_when_nobody_asks(client: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await learn(client, shop.key)
    monkeypatch.setattr(cache_sync, "IDLE_S", 0.1)
    runner = client._runner
    await eventually(lambda: _rests(runner))
    monkeypatch.setattr(cache_sync, "IDLE_S", 60)
    client._local_cache._lease.release()
    await learn(client, shop.key)


def _rests(runner: Any) -> bool:
    if hasattr(runner, "_task"):
        return bool(runner._task.done())
    return runner._thread is None


async def test_a_closed_client_leaves_nothing_running(kind: str, root: Client, root_token: str, shop: Shop) -> None:
    async with opened(kind, root.address, token=root_token, cache=True) as client:
        await learn(client, shop.key)
    assert not [thread for thread in threading.enumerate() if thread.name == "gatekey-cache"]
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "gatekey-cache"]
    client._runner.want(shop.key)
    assert _rests(client._runner)


@pytest.mark.slow
async def test_many_threads_check_while_keys_change(root: Client, root_token: str, fresh_id: str) -> None:
    """None of them ever sees a key allowed again after it saw that it was revoked, or fails."""
    shops = [await open_shop(root, f"{fresh_id}{number}") for number in range(4)]
    problems: list[object] = []
    stop = threading.Event()
    with gatekey.Client(root.address, token=root_token, cache=gatekey.Cache(entries=6)) as client:

        def check(over: set[str]) -> int:
            count = 0
            while not stop.is_set():
                for shop in shops:
                    began_over = shop.key in revoked
                    try:
                        decision = client.check(shop.key, f"campaigns/{count % 50}", "read")
                    except gatekey.ApiError as error:
                        problems.append(error)
                        continue
                    if decision.allowed and (began_over or shop.key in over):
                        problems.append((shop, decision))
                    if not decision.allowed:
                        over.add(shop.key)
                    count += 1
            return count

        revoked: set[str] = set()
        threads = [asyncio.create_task(asyncio.to_thread(check, set())) for _ in range(4)]
        async with opened("event loop", root.address, token=root_token) as admin:

            async def revoke(number: int) -> None:
                await asyncio.sleep(number / 4)
                keys = admin.tenant(PRODUCT, shops[number].tenant).keys
                await keys.revoke(shops[number].name, wait=gatekey.EVERYWHERE)
                revoked.add(shops[number].key)

            await asyncio.gather(*map(revoke, range(4)))
        stop.set()
        assert sum(await asyncio.gather(*threads)) > 1000
    assert not problems


FORK = """
import os, sys, gatekey
client = gatekey.Client({address!r}, token={token!r}, cache=True)
key = {key!r}
while client._local_cache.recall(key, "campaigns", "read", None, None, 0) is None:
    client.check(key, "campaigns", "read")
child = os.fork()
if child == 0:
    cache = client._local_cache
    assert cache.recall(key, "campaigns", "read", None, None, 0) is None
    assert len(cache._known) == 0 and not cache._lease.is_held() and client._runner._thread is None
    while cache.recall(key, "campaigns", "read", None, None, 0) is None:
        assert client.check(key, "campaigns", "read")
    client.close()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert client._local_cache.recall(key, "campaigns", "read", None, None, 0)
client.close()
print("done")
"""


async def test_a_process_that_was_forked_begins_empty(root: Client, root_token: str, shop: Shop) -> None:
    script = FORK.format(address=root.address, token=root_token, key=shop.key)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, env=environment(GRPC_ENABLE_FORK_SUPPORT="1"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            output, problems = await process.communicate()
    finally:
        if process.returncode is None:
            # The forked one as well.
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    assert output == b"done\n", problems.decode()


def test_closed_clients_leave_nothing_behind() -> None:
    def parts_of_a_closed_client() -> list[object]:
        client = gatekey.Client("127.0.0.1:1", token="gk_x", cache=True)
        client.close()
        assert client._runner is not None
        return [client, client._runner, client._runner._sync, client._local_cache]

    registries = (_fork_hooks._METHODS, _fork_hooks._LOCKS)
    gc.collect()
    before = [len(registry) for registry in registries]
    parts = [weakref.ref(part) for _ in range(100) for part in parts_of_a_closed_client()]
    gc.collect()
    assert [part for part in parts if part() is not None] == []
    assert [len(registry) for registry in registries] == before


def test_one_module_alone_registers_with_the_interpreter() -> None:
    sources = Path(gatekey.__file__).parent.rglob("*.py")
    assert [path.name for path in sources if "os.register_at_fork(" in path.read_text()] == ["_fork_hooks.py"]


def test_a_fork_waits_for_calls_and_holds_them_back() -> None:
    """gRPC does not survive a fork during a call."""
    client = gatekey.Client("127.0.0.1:1", token="gk_x", cache=True)
    assert client._runner is not None
    calling = client._runner._calling
    holds, goes_on, is_over = threading.Event(), threading.Event(), threading.Event()

    def fork() -> None:
        _fork_hooks._before()
        holds.set()
        goes_on.wait(20)
        _fork_hooks._after_in_parent()
        is_over.set()

    with calling:
        thread = threading.Thread(target=fork)
        thread.start()
        assert not holds.wait(0.2)
    assert holds.wait(20)
    assert not calling.acquire(blocking=False)
    goes_on.set()
    assert is_over.wait(20)
    assert calling.acquire(blocking=False)
    calling.release()
    thread.join()
    client.close()


LIGHT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r} or name.startswith("google.rpc"):
            raise ImportError(f"{{name}} is not in the base install")
sys.meta_path.insert(0, Blocked())
import gatekey
gatekey.Client("127.0.0.1:1", token="gk_x").close()
assert not [name for name in sys.modules if name.startswith(("gatekey_server", "gatekey.core"))]
gatekey.Client("127.0.0.1:1", token="gk_x", cache=True).close()
assert "gatekey.core.decisions" in sys.modules
print(sorted({{name.split(".")[0] for name in sys.modules}} - sys.stdlib_module_names))
"""


def test_the_base_install_is_enough() -> None:
    """Only what the wheel says it needs: grpcio and protobuf. Without a cache, nothing that decides is loaded."""
    blocked = {
        "asyncpg", "pydantic", "pydantic_settings", "structlog", "sqlalchemy", "alembic", "aiosql", "uvloop",
        "grpc_tools", "prometheus_client", "cryptography", "grpc_health", "grpc_reflection", "typer", "rich",
        "ruamel", "starlette", "fastapi",
    }  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-I", "-c", LIGHT.format(blocked=blocked)],
        capture_output=True, text=True, check=False, env=dict(os.environ), timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    loaded = set(eval(result.stdout))  # noqa: S307 - our own
    expected = {"gatekey", "gatekey_server", "grpc", "google", "typing_extensions", "cython_runtime"}
    assert {name for name in loaded if not name.startswith("_")} <= expected
