"""What a client cache and a server say to each other, without I/O: which calls to make and when, and what follows.

A piece of work is a generator. It yields a `Call`, and must be sent the response, or have the call's `ApiError` thrown
into it; `runner` does that. One thread, or one task, works at a time; only `want` may be called by others meanwhile.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Generator, Iterable
from datetime import UTC
from math import inf
from typing import Any, Final

from gatekey import _methods as methods
from gatekey import errors
from gatekey._cache.codec import read_lease_s, read_poll, read_result, write_uses
from gatekey._cache.lookup import LocalCache
from gatekey._calls import Call
from gatekey._fork_hooks import in_forked_child
from gatekey.core import clock
from gatekey.core.decisions import RULES, CompiledSpec
from gatekey.core.lease import LEASE_S
from gatekey.core.secrets import is_well_formed
from gatekey.v1 import cache_service_pb2 as pb
from gatekey.wire.specs import read_spec

SYNC_S: Final = LEASE_S / 4
"""How often the lease is renewed."""
SYNC_TIMEOUT_S: Final = LEASE_S / 3
REPORT_S: Final = 10.0
"""How often uses are reported."""
IDLE_S: Final = 60.0
"""How long after the last check the lease is still renewed."""

_MAX_WANTED: Final = 1000
_MAX_USES: Final = 1000
_MAX_SPECS: Final = 256
_FIRST_BACKOFF_S: Final = 0.1
_LONG_BACKOFF_S: Final = 10.0
_MAX_DOUBLINGS: Final = 10


_TRANSIENT_ERRORS = (errors.Unavailable, errors.DeadlineExceeded, errors.ResourceExhausted)

Work = Generator[Call[Any], Any, None]


class LeaseRenewer:
    """Hears what has changed and renews the lease: `Sync`."""

    def __init__(self, local_cache: LocalCache) -> None:
        self._local_cache = local_cache
        self._failures = 0
        self.cursor = b""
        """How far changes have been applied; for the server to read."""
        self.due_at = -inf
        """By `clock`: when to renew next."""

    def renew(self) -> Work:
        """Call `Sync` once."""
        # Before the server is asked: the lease counts from here, however long the response takes.
        asked_at = clock.now()
        try:
            response = yield Call(
                methods.SYNC.path, pb.SyncRequest(cursor=self.cursor), pb.SyncResponse, SYNC_TIMEOUT_S
            )
        except errors.ApiError as error:
            self._fail(error)
        else:
            self._succeed(response, asked_at)

    def _succeed(self, response: pb.SyncResponse, asked_at: float) -> None:
        self._local_cache.apply(
            read_poll(response),
            failed_over=response.failed_over,
            asked_at=asked_at,
            lease_s=read_lease_s(response),
        )
        self.cursor = response.cursor
        self._failures = 0
        self.due_at = asked_at + SYNC_S

    def _fail(self, error: errors.ApiError) -> None:
        self._local_cache.unreachable = isinstance(error, errors.Unavailable | errors.DeadlineExceeded)
        if error.reason == "REVISION_NOT_REACHED" and not self._local_cache.has_lease:
            # The last changes that were applied may have been lost in a failover.
            self.cursor = b""
        elif not isinstance(error, _TRANSIENT_ERRORS):
            self._local_cache.release()
        self.due_at = clock.now() + self._backoff_s(error)
        self._failures = min(self._failures + 1, _MAX_DOUBLINGS)

    def _backoff_s(self, error: errors.ApiError) -> float:
        if isinstance(error, _TRANSIENT_ERRORS):
            return min(_FIRST_BACKOFF_S * float(2**self._failures), SYNC_S)
        return _LONG_BACKOFF_S


class KeyResolver:
    """Has a server tell what secrets stand for: `Resolve`."""

    def __init__(self, local_cache: LocalCache) -> None:
        self._local_cache = local_cache
        self._lock = threading.Lock()
        self._wanted: dict[bytes, str] = {}
        self._specs: dict[bytes, CompiledSpec] = {}

    def want(self, key: str) -> None:
        """Have a key resolved soon, unless it cannot be one or too many are wanted."""
        if not is_well_formed(key):
            return
        with self._lock:
            if len(self._wanted) < _MAX_WANTED:
                self._wanted[hashlib.sha256(key.encode()).digest()] = key

    def has_work(self) -> bool:
        """Return whether there are keys to resolve, and a lease without which they could not be kept."""
        return bool(self._wanted) and self._local_cache.has_lease

    def resolve(self, cursor: bytes) -> Work:
        """Call `Resolve` once, for all keys that are wanted. `cursor` is that of the lease."""
        with self._lock:
            wanted, self._wanted = self._wanted, {}
        epoch = self._local_cache.epoch()
        # The cursor, because a server in another history would tell what is not true in this one, under the same
        # revisions.
        request = pb.ResolveRequest(keys=wanted.values(), rules=RULES, known_specs=self._specs, cursor=cursor)
        asked_at = clock.now()
        try:
            response: pb.ResolveResponse = yield Call(methods.RESOLVE.path, request, pb.ResolveResponse, SYNC_TIMEOUT_S)
        except errors.ApiError:
            # The next check of the key wants it again.
            return
        self._learn_specs(response.specs)
        time = response.time.ToDatetime(UTC)
        results = [
            read_result(digest, result, self._specs, asked_at, time)
            for digest, result in zip(wanted, response.results, strict=True)
        ]
        self._local_cache.learn([result for result in results if result is not None], epoch)

    def _learn_specs(self, specs: Iterable[pb.ResolvedSpec]) -> None:
        for each in specs:
            self._specs[each.id] = CompiledSpec(read_spec(each.spec, []))
            if len(self._specs) > _MAX_SPECS:
                del self._specs[next(iter(self._specs))]


class UseReporter:
    """Tells servers which keys were allowed something: `ReportUses`."""

    def __init__(self, local_cache: LocalCache) -> None:
        self._local_cache = local_cache
        self.due_at = -inf
        """By `clock`: when to report next."""

    def report(self) -> Work:
        """Call `ReportUses` as often as it takes."""
        self.due_at = clock.now() + REPORT_S
        uses = self._local_cache.take_uses()
        for start in range(0, len(uses), _MAX_USES):
            request = write_uses(uses[start : start + _MAX_USES])
            try:
                yield Call(methods.REPORT_USES.path, request, pb.ReportUsesResponse)
            except _TRANSIENT_ERRORS:
                # With the next report, unless these are too many to be kept until then.
                if len(uses) <= self._local_cache.max_keys:
                    self._local_cache.put_back_uses(uses[start:])
                return
            except errors.ApiError:
                return


class CacheSync:
    """Keeps a `LocalCache` fresh: says what is to be done, and when. Starts over in a forked process."""

    def __init__(self, local_cache: LocalCache) -> None:
        self.local_cache = local_cache
        self.forget()
        in_forked_child(self, CacheSync.forget)

    def forget(self) -> None:
        """Start over, with nothing wanted and everything due."""
        self._renewer = LeaseRenewer(self.local_cache)
        self._resolver = KeyResolver(self.local_cache)
        self._reporter = UseReporter(self.local_cache)
        self._asked_at = clock.now()

    def want(self, key: str) -> None:
        """Have a key resolved soon, because a check could not be decided. Any thread may call this."""
        self._resolver.want(key)

    def has_work(self) -> bool:
        """Return whether there is something to do now."""
        return self._resolver.has_work() or clock.now() >= self._renewer.due_at

    def pause_s(self) -> float:
        """Return for how many seconds there is nothing to do, unless a key is wanted meanwhile."""
        return max(0.0, self._renewer.due_at - clock.now())

    def is_idle(self) -> bool:
        """Return whether there has been no check for `IDLE_S`, so that freshness serves nobody."""
        if self.local_cache.asked:
            self.local_cache.asked = False
            self._asked_at = clock.now()
        return clock.now() > self._asked_at + IDLE_S

    def work(self) -> Work:
        """Do what there is to do now."""
        if clock.now() >= self._renewer.due_at:
            yield from self._renewer.renew()
        if self._resolver.has_work():
            yield from self._resolver.resolve(self._renewer.cursor)
        if clock.now() >= self._reporter.due_at:
            yield from self._reporter.report()

    def report(self) -> Work:
        """Report uses now."""
        return self._reporter.report()
