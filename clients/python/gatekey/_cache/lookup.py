"""What a client knows of keys, and how long it may decide checks by that. Makes no calls and waits for none.

Many threads use it. A check reads the lease first, then an entry, then the index: whatever it finds after it has read
the lease is no older than the lease promises. Whoever changes anything holds `_lock`, and extends the lease last.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from gatekey._cache.codec import read_question, write_decision
from gatekey._cache.snapshot import CachedSnapshot, ResolvedSecret
from gatekey._fork_hooks import in_forked_child
from gatekey.core import clock
from gatekey.core.changes import Poll
from gatekey.core.decisions import KEY_UNKNOWN, decide
from gatekey.core.invalidation_index import InvalidationIndex
from gatekey.core.lease import Lease
from gatekey.core.secrets import Digest, is_well_formed
from gatekey.core.snapshot_cache import Entry, SnapshotCache
from gatekey.decisions import Decision, Question

_MAX_MEMO: Final = 16_384
_ENTRY_BYTES: Final = 2_000
_UNKNOWN_SHARE: Final = 10

Epoch = tuple[int, int]
"""Changes when what is on its way from a server may no longer be kept."""


class UnknownSecrets:
    """Secrets that do not exist, by their SHA-256. The oldest makes room for a new one."""

    def __init__(self, max_secrets: int) -> None:
        self._max_secrets = max_secrets
        self._entries: dict[bytes, tuple[Entry, ...]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, digest: bytes) -> tuple[Entry, ...] | None:
        """Return entries that all must be current for the secret not to exist; None where nothing is known of it."""
        return self._entries.get(digest)

    def put(self, resolved: ResolvedSecret) -> None:
        """Remember that a secret did not exist at a revision."""
        self._entries.pop(resolved.digest, None)
        self._entries[resolved.digest] = tuple(Entry(scope, None, resolved.revision, 0) for scope in resolved.scopes)
        while len(self._entries) > self._max_secrets:
            del self._entries[next(iter(self._entries))]

    def discard(self, digest: bytes) -> None:
        """Forget a secret, which exists now."""
        self._entries.pop(digest, None)

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()


class LocalCache:
    """Snapshots, the lease under which they count, and the decisions that were made by them.

    It is empty and without a lease at first, and in a forked process.

    Args:
        max_keys: how many keys to hold.
        stale_s: for how many seconds after the lease to go on deciding while no server can be reached.
    """

    def __init__(self, max_keys: int, stale_s: float) -> None:
        self.max_keys = max_keys
        self._stale_s = stale_s
        self.forget()
        in_forked_child(self, LocalCache.forget)

    def forget(self) -> None:
        """Start over, with nothing known."""
        # Another thread of the parent may hold the lock of before, and never releases it in a forked process.
        self._lock = threading.Lock()
        self._lease = Lease()
        self._index = InvalidationIndex()
        self._known = SnapshotCache(self.max_keys, self.max_keys * _ENTRY_BYTES)
        self._unknown = UnknownSecrets(max(1, self.max_keys // _UNKNOWN_SHARE))
        self._memo: dict[tuple[object, ...], Decision] = {}
        self._used: dict[CachedSnapshot, float] = {}
        self.asked = False
        """Whether there was a check since this was last set to False."""
        self.unreachable = False
        """Whether the last attempt to renew the lease reached no server."""

    # ------------------------------------------------------------ checks

    def recall(
        self, key: str, resource: str, action: str, tenant: str | None, product: str | None, min_revision: int
    ) -> Decision | None:
        """Return the decision that follows from what is known; None where only a server can decide."""
        self.asked = True
        now = clock.now()
        # Before anything is looked up: see the module's docstring.
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
        if entry.verified < self._index.applied.revision and not self._is_current(entry):
            return None
        snapshot = entry.snapshot
        if not isinstance(snapshot, CachedSnapshot) or now >= snapshot.until:
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

    def _may_be_stale(self, now: float) -> bool:
        return self.unreachable and now < self._lease.until + self._stale_s

    def _is_current(self, entry: Entry) -> bool:
        with self._lock:
            return self._index.is_current(entry)

    def _recall_unknown(self, digest: bytes, asked: Question) -> Decision | None:
        entries = self._unknown.get(digest)
        if entries is None:
            if not asked.key or is_well_formed(asked.key):
                return None
            # What cannot be a secret never becomes one.
            revision = self._index.applied.revision
        else:
            if not all(map(self._is_current, entries)):
                return None
            revision = min(entry.verified for entry in entries)
        if revision < asked.min_revision:
            return None
        if read_question(asked.resource, asked.action, asked.tenant, asked.product) is None:
            return None
        return write_decision(KEY_UNKNOWN, None, revision)

    def _decide(
        self,
        snapshot: CachedSnapshot,
        revision: int,
        resource: str,
        action: str,
        tenant: str | None,
        product: str | None,
    ) -> Decision | None:
        request = read_question(resource, action, tenant, product)
        if request is None:
            return None
        decided = decide(snapshot, request, snapshot.judged_at)
        decision = snapshot.decisions.get(decided.reason)
        if decision is None or decided.missing is not None:
            decision = write_decision(decided, None if decided is KEY_UNKNOWN else snapshot, revision)
            if decided.missing is None:
                snapshot.decisions[decided.reason] = decision
        if len(self._memo) >= _MAX_MEMO:
            self._memo = {}
        self._memo[snapshot, resource, action, tenant, product] = decision
        return decision

    # ------------------------------------------------------------ what servers tell

    @property
    def has_lease(self) -> bool:
        """Whether checks may be decided now."""
        return self._lease.is_held()

    def epoch(self) -> Epoch:
        """Return the epoch, for `learn`; to be called before a server is asked about secrets."""
        with self._lock:
            return self._index.resets, self._index.lease_gaps

    def apply(self, poll: Poll, *, failed_over: bool, asked_at: float, lease_s: float) -> None:
        """Apply what has changed, then hold the lease.

        Args:
            poll: what has changed since the last one.
            failed_over: whether there was a failover of the database since.
            asked_at: a reading of `clock` before the server was asked.
            lease_s: how long the lease lasts from `asked_at` on.
        """
        with self._lock:
            resets = self._index.resets
            if failed_over or not self._lease.is_held():
                self._index.on_lease_gap()
            self._index.apply(poll)
            if self._index.resets != resets:
                self._known.clear()
                self._unknown.clear()
            self.unreachable = False
            # Last: from now on, other threads decide by what is here.
            self._lease.extend(asked_at, lease_s)

    def learn(self, resolved: Iterable[ResolvedSecret], epoch: Epoch) -> None:
        """Remember what secrets stand for, unless another epoch began since they were asked about."""
        with self._lock:
            if epoch != (self._index.resets, self._index.lease_gaps):
                return
            for each in resolved:
                self._index.keeps(each.revision, None)
                self._put(each)

    def release(self) -> None:
        """Decide nothing until the next `apply`."""
        self._lease.release()

    def _put(self, resolved: ResolvedSecret) -> None:
        digest = Digest(resolved.digest)
        if resolved.snapshot is not None:
            self._unknown.discard(digest)
            self._known.put(digest, resolved.snapshot, resolved.revision)
            return
        if digest in self._known:
            self._known.put(digest, None, resolved.revision)
        self._unknown.put(resolved)

    # ------------------------------------------------------------ uses

    def take_uses(self) -> list[tuple[CachedSnapshot, float]]:
        """Return the keys that were allowed something since the last call, and when last, by `clock`."""
        used, self._used = self._used, {}
        # In one step: another thread may be about to write into it.
        return list(used.items())

    def put_back_uses(self, uses: Iterable[tuple[CachedSnapshot, float]]) -> None:
        """Have uses returned by the next `take_uses` as well, unless the key was used again since."""
        self._used = dict(uses) | self._used
