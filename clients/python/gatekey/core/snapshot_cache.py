"""The snapshots that this process holds, bounded in number and in bytes.

Which ones stay is decided by S3-FIFO (Yang et al., "FIFO queues are all you need for cache
eviction", SOSP 2023): what is new waits in a small queue, and only what is used again while it is
there, or soon after, gets into the main one. A scan of keys that are used once passes through the
small queue and leaves the others alone.
"""

from collections import deque

from gatekey.core.decisions import KeySnapshot
from gatekey.core.secrets import Digest

_SMALL_SHARE = 10
_MAX_USES = 3

# Bytes, measured with tracemalloc on CPython 3.11; `bench/cache.py` measures them again.
_ENTRY_BYTES = 300
_SNAPSHOT_BYTES = 440
_GRANT_BYTES = 250


class Entry:
    """What is known of one secret, and up to which revision that is known to hold."""

    __slots__ = ("digest", "snapshot", "uses", "verified", "weight")

    def __init__(self, digest: Digest, snapshot: KeySnapshot | None, verified: int, weight: int) -> None:
        self.digest = digest
        self.snapshot = snapshot
        """None: there is no such secret."""
        self.verified = verified
        self.weight = weight
        self.uses = 0


class SnapshotCache:
    """Entries by digest. Whether an entry still holds is not known here.

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
        """How many bytes the entries take, by an estimate."""
        return self._weight

    def clear(self) -> None:
        """Forget everything."""
        self._entries: dict[Digest, Entry] = {}
        self._small: deque[Entry] = deque()
        self._main: deque[Entry] = deque()
        self._ghosts: dict[int, None] = {}
        self._weight = 0

    def get(self, digest: Digest) -> Entry | None:
        """The entry of a digest, which is thereby used."""
        entry = self._entries.get(digest)
        if entry is not None and entry.uses < _MAX_USES:
            entry.uses += 1
        return entry

    def put(self, digest: Digest, snapshot: KeySnapshot | None, verified: int) -> None:
        """Remember what was loaded at a revision, unless something newer is known."""
        weight = _weigh(snapshot)
        entry = self._entries.get(digest)
        if entry is None:
            entry = self._entries[digest] = Entry(digest, snapshot, verified, weight)
            # What was let go a moment ago and is wanted again has earned its place.
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
            # In halves: taking the first of a dict one by one would pass over those that went before.
            self._ghosts = dict.fromkeys(list(self._ghosts)[len(self._ghosts) // 2 :])


def _weigh(snapshot: KeySnapshot | None) -> int:
    if snapshot is None:
        return _ENTRY_BYTES
    return _ENTRY_BYTES + _SNAPSHOT_BYTES + _GRANT_BYTES * len(snapshot.grants.rules)
