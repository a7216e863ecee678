"""The source of snapshots: from memory where they are current, else from the database."""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import structlog
from gatekey.core.decisions import KeySnapshot
from gatekey.core.errors import DomainError, Unavailable, Unreadable
from gatekey.core.invalidation_index import InvalidationIndex
from gatekey.core.names import ApiKeyName
from gatekey.core.secrets import Digest, Secret
from gatekey.core.snapshot_cache import SnapshotCache

from gatekey_server.freshness.lease import PrimaryLease
from gatekey_server.freshness.loads import Loader
from gatekey_server.store import snapshots
from gatekey_server.store.database import Connection, Database, unavailable
from gatekey_server.store.products import CompiledSpecs
from gatekey_server.store.snapshots import LoadResult

_UNKNOWN_SHARE = 10

_log = structlog.get_logger()
_LOAD_ATTEMPTS = 2


class VersionedSnapshot(NamedTuple):
    """The snapshot of one secret, and a revision at which it is right."""

    snapshot: KeySnapshot | None
    """None: there is no such secret."""
    revision: int
    """The snapshot is right as of this revision, and possibly of later ones."""


# For a text that cannot be a secret: no change can ever make it one.
_IMPOSSIBLE = VersionedSnapshot(None, sys.maxsize)

LookupRequest = Sequence[tuple[Secret, int]]
"""Secrets, and the minimum revision of the snapshot of each."""


class Lookup(NamedTuple):
    """The snapshots that are in memory, and the load of the others."""

    wanted: LookupRequest
    found: Sequence[VersionedSnapshot | None]
    loading: "asyncio.Future[LoadResult] | None"
    """None where all are in memory."""

    def result(self) -> Sequence[VersionedSnapshot | DomainError]:
        """Return what `SnapshotSource.get_each` returns, once `loading` is done."""
        if self.loading is None:
            return [known for known in self.found if known is not None]
        try:
            loaded: LoadResult | DomainError = self.loading.result()
        except DomainError as error:
            loaded = error
        return [
            known if known is not None else _pick(loaded, secret, min_revision)
            for (secret, min_revision), known in zip(self.wanted, self.found, strict=True)
        ]


@dataclass(slots=True)
class Counts:
    """Counters since the start of the process."""

    hits: int = 0
    misses: int = 0
    without_lease: int = 0
    loads: int = 0


class SnapshotSource:
    """Returns the snapshots of secrets.

    Args:
        database: where snapshots are loaded from.
        index: which scopes changed, as far as this process has applied it.
        lease: until when that is complete.
        max_entries: how many snapshots to hold.
        max_bytes: how much memory they may take. A tenth of both is for secrets that do not exist.
    """

    def __init__(
        self, database: Database, index: InvalidationIndex, lease: PrimaryLease, *, max_entries: int, max_bytes: int
    ) -> None:
        self._database = database
        self._index = index
        self._lease = lease
        self._specs = CompiledSpecs()
        self._loader = Loader(self._load)
        # A cache of its own for unknown secrets, so that guesses cannot displace those that exist.
        unknown_entries, unknown_bytes = max_entries // _UNKNOWN_SHARE, max_bytes // _UNKNOWN_SHARE
        self._known = SnapshotCache(max_entries - unknown_entries, max_bytes - unknown_bytes)
        self._unknown = SnapshotCache(unknown_entries, unknown_bytes)
        self._resets = 0
        self.counts = Counts()

    @property
    def entries(self) -> int:
        """The number of entries in memory."""
        return len(self._known) + len(self._unknown)

    @property
    def weight(self) -> int:
        """The size of the entries in bytes, estimated."""
        return self._known.weight + self._unknown.weight

    @property
    def applied(self) -> int:
        """The revision that this process has applied: no snapshot that it returns is older."""
        return self._index.applied.revision

    def recall(self, secret: Secret) -> VersionedSnapshot | None:
        """Return the snapshot of a secret from memory; None where it is not there or not current."""
        if not self._lease.is_held():
            self.counts.without_lease += 1
            return None
        self._drop_what_a_reset_left()
        known = self._find(secret)
        if known is None:
            self.counts.misses += 1
        else:
            self.counts.hits += 1
        return known

    async def get(self, secret: Secret) -> VersionedSnapshot | DomainError:
        """Return the snapshot of a secret, no older than any mutation that had returned before the call.

        Errors are returned as by `get_each`.
        """
        (known,) = await self.get_each([(secret, 0)])
        return known

    async def get_each(self, wanted: LookupRequest) -> Sequence[VersionedSnapshot | DomainError]:
        """Return the snapshot of each of several secrets, at its minimum revision or later.

        One query loads those that are not in memory.

        A secret's place holds an error where the database does not respond (`DATABASE_UNAVAILABLE`), has not reached
        the revision (`REVISION_NOT_REACHED`), or is overloaded (`OVERLOADED`).
        """
        while (lookup := self.look_up(wanted)) is None:
            try:
                await self._lease.wait_until_held()
            except Unavailable as error:
                return [error] * len(wanted)
        if lookup.loading is not None:
            # The result holds the error.
            with suppress(DomainError):
                await lookup.loading
        return lookup.result()

    def look_up(self, wanted: LookupRequest) -> Lookup | None:
        """Begin `get_each`, without waiting; None where there is no lease."""
        if not self._lease.is_held():
            self.counts.without_lease += len(wanted)
            return None
        self._drop_what_a_reset_left()
        found: list[VersionedSnapshot | None] = []
        missing: list[Secret] = []
        before, known = None, None
        for secret, min_revision in wanted:
            # Consecutive secrets are often the same.
            if secret is not before:
                before, known = secret, self._find(secret)
            if known is None or known.revision < min_revision:
                missing.append(secret)
                found.append(None)
            else:
                found.append(known)
        self.counts.hits += len(found) - len(missing)
        self.counts.misses += len(missing)
        return Lookup(wanted, found, self._loader.begin(missing) if missing else None)

    async def digests_of(self, key: ApiKeyName) -> Secret:
        """Return the digests that find the snapshot of a key whose holder presents no secret; none for no such key.

        Costs a round trip. Raises `Unavailable` where the database does not respond.
        """
        return await snapshots.digests(self._database, key)

    async def get_within(self, connection: Connection, secret: Secret) -> VersionedSnapshot | DomainError:
        """Return the snapshot of a secret as of this statement of a transaction; the error where it cannot be read.

        Always from the database: it includes every commit before the statement, applied by this process or not.
        """
        return _pick(await snapshots.load_within(connection, self._specs, secret), secret, 0)

    async def digests_of_within(self, connection: Connection, key: ApiKeyName) -> Secret:
        """Return the same as `digests_of`, as of this statement of a transaction."""
        return await snapshots.digests(connection, key)

    def _find(self, secret: Secret) -> VersionedSnapshot | None:
        """Return the snapshot of a secret from memory, where it is current."""
        for digest in secret:
            entry = self._known.get(digest)
            if entry is not None and entry.snapshot is not None:
                return VersionedSnapshot(entry.snapshot, entry.verified) if self._index.is_current(entry) else None
        known = _IMPOSSIBLE
        for digest in secret:
            entry = self._unknown.get(digest)
            if entry is None or not self._index.is_current(entry):
                return None
            known = VersionedSnapshot(None, min(known.revision, entry.verified))
        return known

    async def _load(self, digests: Sequence[Digest]) -> LoadResult:
        before = self._index.resets, self._index.lease_gaps
        loaded = await self._load_from_primary(digests)
        for damage in loaded.unreadable.values():
            _log.error("snapshots.unreadable", error=type(damage.cause).__name__, exc_info=damage.cause)
        self._drop_what_a_reset_left()
        is_kept = before == (self._index.resets, self._index.lease_gaps)
        if is_kept and all(self._index.keeps(*position) for position in loaded.positions):
            for digest in digests:
                if digest in loaded.unreadable:
                    continue
                snapshot = loaded.snapshots.get(digest)
                if snapshot is not None or digest in self._known:
                    self._known.put(digest, snapshot, loaded.revision)
                if snapshot is None:
                    self._unknown.put(digest, None, loaded.revision)
        return loaded

    async def _load_from_primary(self, digests: Sequence[Digest]) -> LoadResult:
        """Load snapshots from the server that renewed the lease. The caller has checked that the lease is held."""
        for _ in range(_LOAD_ATTEMPTS):
            loaded = await snapshots.load(self._database, self._specs, digests)
            self.counts.loads += 1
            if loaded.server == self._lease.server:
                return loaded
            await self._database.expire_connections()
        raise unavailable()

    def _drop_what_a_reset_left(self) -> None:
        if self._resets != self._index.resets:
            self._resets = self._index.resets
            self._known.clear()
            self._unknown.clear()


def _pick(loaded: LoadResult | DomainError, secret: Secret, min_revision: int) -> VersionedSnapshot | DomainError:
    if isinstance(loaded, DomainError):
        return loaded
    if loaded.revision < min_revision:
        return Unavailable("REVISION_NOT_REACHED", f"the database is at revision {loaded.revision}")
    try:
        return VersionedSnapshot(_first(loaded, secret), loaded.revision)
    except Unreadable as error:
        return error


def _first(loaded: LoadResult, secret: Secret) -> KeySnapshot | None:
    """Return the snapshot that a load found for a secret. Raises `Unreadable`."""
    for digest in secret:
        if digest in loaded.snapshots:
            return loaded.snapshots[digest]
    for digest in secret:
        if digest in loaded.unreadable:
            text = "what is stored about it cannot be read; the server's log says why"
            damage = loaded.unreadable[digest]
            raise Unreadable("STORED_DATA_UNREADABLE", text, product=damage.product) from damage.cause
    return None
