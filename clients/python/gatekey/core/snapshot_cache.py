"""A cache of snapshots, bounded in entries and in bytes.

It evicts by S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023). A new entry starts in
a small queue, and moves to the main queue only if it is used again while it is there, or soon after. A scan of keys
that are used once passes through the small queue and does not displace the others.
"""

from collections import deque

from gatekey.core.decisions import KeySnapshot
from gatekey.core.secrets import Digest

_SMALL_SHARE = 10
_MAX_USES = 3

# In bytes, measured with tracemalloc on CPython 3.11. `bench/cache.py` repeats the measurement.
_ENTRY_BYTES = 300
_SNAPSHOT_BYTES = 440
_GRANT_BYTES = 250


class Entry:
    """The snapshot of one secret, and the last revision at which it was verified."""

    __slots__ = ("digest", "snapshot", "uses", "verified", "weight")

    def __init__(self, digest: Digest, snapshot: KeySnapshot | None, verified: int, weight: int) -> None:
        self.digest = digest
        self.snapshot = snapshot
        """None: there is no such secret."""
        self.verified = verified
        self.weight = weight
        self.uses = 0


class SnapshotCache:
    """Entries by digest. `InvalidationIndex` decides whether an entry is current.

    Args:
        max_entries: how many entries to hold.
        max_bytes: how much memory they may take, by an estimate.
    """

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self.clear()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._entries

    @property
    def weight(self) -> int:
        """The size of the entries in bytes, estimated."""
        return self._weight

    def clear(self) -> None:
        """Drop everything."""
        self._entries: dict[Digest, Entry] = {}
        self._small: deque[Entry] = deque()
        self._main: deque[Entry] = deque()
        self._ghosts: dict[int, None] = {}
        self._weight = 0

    def get(self, digest: Digest) -> Entry | None:
        """Return the entry of a digest, and count the use."""
        entry = self._entries.get(digest)
        if entry is not None and entry.uses < _MAX_USES:
            entry.uses += 1
        return entry

    def put(self, digest: Digest, snapshot: KeySnapshot | None, verified: int) -> None:
        """Store a snapshot that was loaded at a revision, unless the entry is newer."""
        weight = _weigh(snapshot)
        entry = self._entries.get(digest)
        if entry is None:
            entry = self._entries[digest] = Entry(digest, snapshot, verified, weight)
            # An entry that was evicted a moment ago and is used again goes to the main queue.
            queue = self._small if self._ghosts.pop(hash(digest), self) is self else self._main
            queue.append(entry)
            self._weight += weight
        elif verified >= entry.verified:
            self._weight += weight - entry.weight
            entry.snapshot, entry.verified, entry.weight = snapshot, verified, weight
        while len(self._entries) > self._max_entries or self._weight > self._max_bytes:
            self._evict_one()

    def _evict_one(self) -> None:
        if not self._main or len(self._small) * _SMALL_SHARE >= len(self._entries):
            entry = self._small.popleft()
            if entry.uses > 1:
                entry.uses = 0
                self._main.append(entry)
                return
            self._remember_ghost(hash(entry.digest))
        else:
            entry = self._main.popleft()
            if entry.uses:
                entry.uses -= 1
                self._main.append(entry)
                return
        del self._entries[entry.digest]
        self._weight -= entry.weight

    def _remember_ghost(self, ghost: int) -> None:
        self._ghosts[ghost] = None
        if len(self._ghosts) > len(self._main) + 1000:
            # Half at a time: deleting a dict's first item repeatedly would scan over all deleted ones.
            self._ghosts = dict.fromkeys(list(self._ghosts)[len(self._ghosts) // 2 :])


def _weigh(snapshot: KeySnapshot | None) -> int:
    if snapshot is None:
        return _ENTRY_BYTES
    return _ENTRY_BYTES + _SNAPSHOT_BYTES + _GRANT_BYTES * len(snapshot.grants.rules)
