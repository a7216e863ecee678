"""The client cache: snapshots behind keys, and how long checks may be decided by them. Makes no calls, waits for none.

It inherits its freshness from a server. The clock is read *before* `Sync` is sent, and the server answers what has
changed and how long its own lease lasts; until that reading plus this rest, there is nothing that a server could know
and this cache does not. The structures are the server's own, and so is `decide`.

It is used by many threads. A check looks at the lease first, then at an entry, then at the history: whatever it finds
after it has seen the lease is no older than the lease promises. `_lock` is held by whoever changes anything.
"""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from math import inf
from typing import Any, Final

from gatekey import errors
from gatekey._calls import Call
from gatekey._fork_hooks import in_forked_child
from gatekey.core import clock
from gatekey.core import decisions as domain
from gatekey.core.changes import Poll, Position, ScopeChange
from gatekey.core.decisions import RULES, CompiledSpec, KeySnapshot, Owner, PrincipalKind, Request, decide
from gatekey.core.errors import InvalidRequest
from gatekey.core.grants import GrantSet, parse_action, parse_path
from gatekey.core.invalidation_index import InvalidationIndex
from gatekey.core.lease import LEASE_S, Lease
from gatekey.core.names import parse_id
from gatekey.core.secrets import Digest, is_well_formed
from gatekey.core.snapshot_cache import Entry, SnapshotCache
from gatekey.decisions import Decision, KeyKind, Permission, Question, Reason
from gatekey.v1 import cache_service_pb2 as pb
from gatekey.wire.conversions import ACCESS_MODE, KEY_KIND, read_grants
from gatekey.wire.specs import read_spec

SYNC_S: Final = LEASE_S / 4
"""How often the lease is renewed."""
SYNC_TIMEOUT_S: Final = LEASE_S / 3
REPORT_S: Final = 10.0
"""How often uses are reported."""
IDLE_S: Final = 60.0
"""After how long without a check nothing is renewed any more."""

_MAX_WANTED = 1000
_MAX_USES = 1000
_MAX_USE_AGE_S = 86_400.0
_MAX_SPECS = 256
_MAX_MEMO = 16_384
_ENTRY_BYTES = 2_000
_UNKNOWN_SHARE = 10
_FIRST_BACKOFF_S = 0.1
_LONG_BACKOFF_S = 10.0
# As the lease's: the clocks of two machines run apart by less than this.
_CLOCK_RATE = 1.01
_NO_STAMP = uuid.UUID(int=0)
_NEVER = datetime.min.replace(tzinfo=UTC)

_SYNC = "/gatekey.v1.CacheService/Sync"
_RESOLVE = "/gatekey.v1.CacheService/Resolve"
_REPORT = "/gatekey.v1.CacheService/ReportUses"

_REASONS = {reason: Reason[reason.name] for reason in domain.Reason}
_PEOPLE = {PrincipalKind.MEMBER: "members", PrincipalKind.MACHINE_USER: "machineUsers"}
_PASSING = (errors.Unavailable, errors.DeadlineExceeded, errors.ResourceExhausted)

Work = Generator[Call[Any], Any, None]
"""Yields calls to be made, and wants to be sent their answers, or to have their `ApiError` thrown."""


@dataclass(frozen=True, slots=True, eq=False)
class _CachedSnapshot(KeySnapshot):
    """A snapshot, and what was decided by it. Each is equal to itself alone."""

    until: float = inf
    """By `clock`: from then on the key may have expired, and the server is asked."""
    judged_at: datetime = _NEVER
    """When the server told it, by its clock. Decisions are as of that moment, and the same until `until`."""
    decisions: dict[domain.Reason, Decision] = field(default_factory=dict)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def key_name(self) -> str:
        """The resource name of the key."""
        return f"products/{self.product}/tenants/{self.tenant}/apiKeys/{self.key_id}"


class LocalCache:
    """What a client knows. An empty one, without a lease, in a process that was forked."""

    def __init__(self, entries: int, stale_s: float) -> None:
        self._entries = entries
        self._stale_s = stale_s
        self.forget()
        in_forked_child(self, LocalCache.forget)

    def forget(self) -> None:
        """Begin anew."""
        unknown = max(1, self._entries // _UNKNOWN_SHARE)
        self._lock = threading.Lock()
        self._lease = Lease()
        self._index = InvalidationIndex()
        self._known = SnapshotCache(self._entries, self._entries * _ENTRY_BYTES)
        self._unknown: dict[bytes, tuple[Entry, ...]] = {}
        self._max_unknown = unknown
        self._resets = 0
        self._compiled: dict[bytes, CompiledSpec] = {}
        self._memo: dict[tuple[object, ...], Decision] = {}
        self._used: dict[_CachedSnapshot, float] = {}
        self._wanted: dict[bytes, str] = {}
        self._cursor = b""
        self._unreachable = False
        self._failures = 0
        self._sync_at = self._report_at = -inf
        self._asked_at = clock.now()
        self.asked = False
        """Whether there was a check since somebody looked."""

    # ------------------------------------------------------------ checks

    def recall(
        self, key: str, resource: str, action: str, tenant: str | None, product: str | None, min_revision: int
    ) -> Decision | None:
        """Decide by what is known; None where the server is to be asked."""
        self.asked = True
        now = clock.now()
        # Before anything is looked up: see above.
        is_fresh = now < self._lease.until
        if not is_fresh and not self._may_be_stale(now):
            return None
        try:
            digest = hashlib.sha256(key.encode()).digest()
        except UnicodeEncodeError:
            return None
        entry = self._known.get(digest)  # type: ignore[arg-type]
        if entry is None:
            decision = self._recall_unknown(digest, Question(key, resource, action, tenant, product, min_revision))
            return decision if is_fresh or decision is None else replace(decision, stale=True)
        if entry.verified < self._index.applied.revision and not self._holds(entry):
            return None
        snapshot = entry.snapshot
        if not isinstance(snapshot, _CachedSnapshot) or now >= snapshot.until:
            return None
        decision = self._memo.get((snapshot, resource, action, tenant, product))
        if decision is None:
            decision = self._decide(snapshot, entry.verified, resource, action, tenant, product)
            if decision is None:
                return None
        if decision.revision < min_revision:
            if entry.verified < min_revision:
                return None
            decision = replace(decision, revision=entry.verified)
        if decision.allowed:
            self._used[snapshot] = now
        return decision if is_fresh else replace(decision, stale=True)

    def want(self, key: str) -> bool:
        """Have a key looked up soon, unless too many are; answers whether it will be."""
        if not is_well_formed(key):
            return False
        with self._lock:
            if len(self._wanted) >= _MAX_WANTED:
                return False
            self._wanted[hashlib.sha256(key.encode()).digest()] = key
            return True

    def _may_be_stale(self, now: float) -> bool:
        return self._unreachable and now < self._lease.until + self._stale_s

    def _holds(self, entry: Entry) -> bool:
        with self._lock:
            return self._index.is_current(entry)

    def _recall_unknown(self, digest: bytes, asked: Question) -> Decision | None:
        entries = self._unknown.get(digest)
        if entries is None:
            if not asked.key or is_well_formed(asked.key):
                return None
            # What cannot be a secret never will be one.
            revision = self._index.applied.revision
        else:
            if not all(map(self._holds, entries)):
                return None
            revision = min(entry.verified for entry in entries)
        if revision < asked.min_revision or _read(asked.resource, asked.action, asked.tenant, asked.product) is None:
            return None
        return _write(domain.KEY_UNKNOWN, None, revision)

    def _decide(
        self,
        snapshot: _CachedSnapshot,
        revision: int,
        resource: str,
        action: str,
        tenant: str | None,
        product: str | None,
    ) -> Decision | None:
        request = _read(resource, action, tenant, product)
        if request is None:
            return None
        decided = decide(snapshot, request, snapshot.judged_at)
        decision = snapshot.decisions.get(decided.reason)
        if decision is None or decided.missing is not None:
            decision = _write(decided, None if decided is domain.KEY_UNKNOWN else snapshot, revision)
            if decided.missing is None:
                snapshot.decisions[decided.reason] = decision
        if len(self._memo) >= _MAX_MEMO:
            self._memo = {}
        self._memo[snapshot, resource, action, tenant, product] = decision
        return decision

    # ------------------------------------------------------------ maintenance

    def pause_s(self) -> float:
        """How long there is nothing to do, unless a key is wanted meanwhile."""
        return max(0.0, self._sync_at - clock.now())

    def has_work(self) -> bool:
        """Whether there is something to do now."""
        return bool(self._wanted and self._lease.is_held()) or clock.now() >= self._sync_at

    def is_idle(self) -> bool:
        """Whether nobody has asked for a while."""
        if self.asked:
            self.asked = False
            self._asked_at = clock.now()
        return clock.now() > self._asked_at + IDLE_S

    def work(self) -> Work:
        """Do what is to be done now."""
        if clock.now() >= self._sync_at:
            yield from self._sync()
        if self._wanted and self._lease.is_held():
            yield from self._resolve()
        if clock.now() >= self._report_at:
            yield from self.report()

    def report(self) -> Work:
        """Tell which keys were used."""
        self._report_at = clock.now() + REPORT_S
        used, self._used = self._used, {}
        # In one step: another thread may be about to write into it.
        uses = list(used.items())
        for start in range(0, len(uses), _MAX_USES):
            request = _write_uses(uses[start : start + _MAX_USES])
            try:
                yield Call(_REPORT, request, pb.ReportUsesResponse)
            except _PASSING:
                # The next time, unless that is too many; what was used since is newer.
                if len(uses) <= self._entries:
                    self._used = dict(uses[start:]) | self._used
                return
            except errors.ApiError:
                return

    def _sync(self) -> Work:
        asked_at = clock.now()
        try:
            answer = yield Call(_SYNC, pb.SyncRequest(cursor=self._cursor), pb.SyncResponse, SYNC_TIMEOUT_S)
        except errors.ApiError as error:
            self._sync_failed(error)
        else:
            self._synced(answer, asked_at)

    def _synced(self, answer: pb.SyncResponse, asked_at: float) -> None:
        changes = None if answer.reset else [_read_change(change) for change in answer.changes]
        with self._lock:
            if answer.failed_over or not self._lease.is_held():
                self._index.on_lease_gap()
            self._index.apply(Poll(Position(answer.revision, _NO_STAMP), True, changes, _NEVER))
            if self._resets != self._index.resets:
                self._resets = self._index.resets
                self._known.clear()
                self._unknown.clear()
            self._cursor = answer.cursor
            self._unreachable, self._failures = False, 0
            # Last: from now on others answer by what is here.
            self._lease.extend(asked_at, min(answer.lease.ToMicroseconds() / 1e6, LEASE_S))
        self._sync_at = asked_at + SYNC_S

    def _sync_failed(self, error: errors.ApiError) -> None:
        self._unreachable = isinstance(error, errors.Unavailable | errors.DeadlineExceeded)
        if error.reason == "REVISION_NOT_REACHED" and not self._lease.is_held():
            # The last changes that were heard of may have been lost in a failover.
            self._cursor = b""
        elif not isinstance(error, _PASSING):
            self._lease.release()
        delay = min(_FIRST_BACKOFF_S * 2**self._failures, SYNC_S) if isinstance(error, _PASSING) else _LONG_BACKOFF_S
        self._failures = min(self._failures + 1, 10)
        self._sync_at = clock.now() + delay

    def _resolve(self) -> Work:
        with self._lock:
            wanted, self._wanted = self._wanted, {}
            before = self._index.resets, self._index.lease_gaps
        # A server that is in another history would tell what is not true in this one, under the same numbers.
        request = pb.ResolveRequest(keys=wanted.values(), rules=RULES, known_specs=self._compiled, cursor=self._cursor)
        asked_at = clock.now()
        try:
            answer: pb.ResolveResponse = yield Call(_RESOLVE, request, pb.ResolveResponse, SYNC_TIMEOUT_S)
        except errors.ApiError:
            # Who still wants to know asks again.
            return
        self._learn(answer.specs)
        with self._lock:
            if before != (self._index.resets, self._index.lease_gaps):
                return
            for digest, result in zip(wanted, answer.results, strict=True):
                self._index.keeps(result.revision, None)
                self._put(Digest(digest), result, asked_at, answer.time.ToDatetime(UTC))

    def _learn(self, specs: Iterable[pb.ResolvedSpec]) -> None:
        for each in specs:
            self._compiled[each.id] = CompiledSpec(read_spec(each.spec, []))
            if len(self._compiled) > _MAX_SPECS:
                del self._compiled[next(iter(self._compiled))]

    def _put(self, digest: Digest, result: pb.ResolveResult, asked_at: float, time: datetime) -> None:
        if result.unreadable:
            # The server says what is to be said.
            return
        if result.HasField("key"):
            compiled = self._compiled.get(result.key.spec)
            if compiled is not None:
                self._unknown.pop(digest, None)
                self._known.put(digest, _read_key(result.key, compiled, asked_at, time), result.revision)
            return
        if digest in self._known:
            self._known.put(digest, None, result.revision)
        self._unknown.pop(digest, None)
        self._unknown[digest] = tuple(Entry(Digest(scope), None, result.revision, 0) for scope in result.secret_scopes)
        while len(self._unknown) > self._max_unknown:
            del self._unknown[next(iter(self._unknown))]


def _read(resource: str, action: str, tenant: str | None, product: str | None) -> Request | None:
    """The question as the server reads it; None where it is none, which the server is to say."""
    if not _makes_sense(action, tenant, product):
        return None
    try:
        return Request(parse_path(resource, "resource"), action, tenant, product)
    except InvalidRequest:
        return None


@lru_cache(maxsize=4096)
def _makes_sense(action: str, tenant: str | None, product: str | None) -> bool:
    """What many questions have in common."""
    try:
        parse_action(action, "action")
        for id_, name in ((tenant, "tenant"), (product, "product")):
            if id_ is not None:
                parse_id(id_, name)
    except InvalidRequest:
        return False
    return True


def _read_change(change: pb.ScopeChange) -> ScopeChange:
    return ScopeChange(
        change.revision,
        change.product or None,
        change.tenant if change.HasField("tenant") else None,
        change.principal if change.HasField("principal") else None,
        uuid.UUID(bytes=change.key) if change.key else None,
        Digest(change.secret) if change.secret else None,
    )


def _read_key(key: pb.ResolvedKey, compiled: CompiledSpec, asked_at: float, time: datetime) -> _CachedSnapshot:
    expire_time = key.expire_time.ToDatetime(UTC) if key.HasField("expire_time") else None
    until = inf
    if expire_time is not None and expire_time > time:
        # Whatever the times of day are here and there, and earlier rather than later.
        until = asked_at + (expire_time - time).total_seconds() / _CLOCK_RATE
    owner = None
    if key.HasField("owner"):
        is_machine = key.owner.WhichOneof("principal") == "machine_user"
        owner = (
            Owner(PrincipalKind.MACHINE_USER, key.owner.machine_user, None)
            if is_machine
            else Owner(PrincipalKind.MEMBER, key.owner.member, key.owner.role or None)
        )
    kind = KEY_KIND.read(key.kind, "kind")
    if kind is None:
        raise ValueError("a key without a kind")
    return _CachedSnapshot(
        compiled=compiled,
        tenant=key.tenant,
        tenant_suspended=key.tenant_suspended,
        tenant_deleted=key.tenant_deleted,
        key_id=key.api_key,
        kind=kind,
        mode=ACCESS_MODE.read(key.mode, "mode"),
        grants=GrantSet.of(read_grants(key.grants)),
        owner=owner,
        key_revoked=key.revoked,
        key_disabled=key.disabled,
        expire_time=expire_time,
        uid=(key.tenant_scope, uuid.UUID(bytes=key.key_scope)),
        principal_uid=key.owner.scope if owner else None,
        until=until,
        judged_at=time,
    )


def _write(decided: domain.Decision, snapshot: _CachedSnapshot | None, revision: int) -> Decision:
    reason = _REASONS[decided.reason]
    if snapshot is None:
        return Decision(False, reason, decided.message(), revision=revision)
    tenant = f"products/{snapshot.product}/tenants/{snapshot.tenant}"
    missing, owner = decided.missing, snapshot.owner
    return Decision(
        decided.allowed,
        reason,
        decided.message(snapshot.compiled.tenant_noun),
        (Permission(missing.resource, missing.action),) if missing else (),
        snapshot.product,
        snapshot.tenant,
        f"{tenant}/{_PEOPLE[owner.kind]}/{owner.id}" if owner else "",
        snapshot.role or "",
        snapshot.key_name,
        KeyKind[snapshot.kind.name],
        snapshot.expire_time,
        revision,
    )


def _write_uses(uses: Iterable[tuple[_CachedSnapshot, float]]) -> pb.ReportUsesRequest:
    request, now = pb.ReportUsesRequest(), clock.now()
    for snapshot, last in uses:
        use = request.uses.add(api_key=snapshot.key_name)
        use.ago.FromMicroseconds(int(min(now - last, _MAX_USE_AGE_S) * 1e6))
    return request
