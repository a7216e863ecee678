"""The source of facts: from memory where that is known to be right, else from the database."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from gatekey_server.domain.decisions import Fact
from gatekey_server.domain.errors import Unavailable
from gatekey_server.domain.names import ApiKeyName
from gatekey_server.domain.secrets import Digest
from gatekey_server.freshness.cache import Entry, FactCache
from gatekey_server.freshness.history import History
from gatekey_server.freshness.lease import Lease
from gatekey_server.freshness.loads import Loader
from gatekey_server.store import facts
from gatekey_server.store.database import Database
from gatekey_server.store.facts import Loaded
from gatekey_server.store.products import CompiledSpecs

_UNKNOWN_SHARE = 10

# What stands for a text that cannot be a secret: nothing will ever change about it.
_IMPOSSIBLE = Entry(Digest(b""), None, sys.maxsize, 0)

Secret = tuple[Digest, ...]
"""A presented secret, hashed under every pepper, the newest first; empty where it cannot be one."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of several secrets at once."""

    facts: tuple[Fact | None, ...]
    """In the order of the question; None where there is no such secret."""
    revision: int
    """The facts are those of this revision, or of a later one that does not differ in them."""


@dataclass(slots=True)
class Counts:
    """What happened since the start."""

    hits: int = 0
    misses: int = 0
    without_lease: int = 0
    loads: int = 0


class FactSource:
    """Yields the facts behind secrets.

    Args:
        database: where they are, if not here.
        history: what has been applied of the database's changes.
        lease: until when that is all there is.
        max_entries: how many facts to hold.
        max_bytes: how much memory they may take. A tenth of both is for secrets that do not exist.
    """

    def __init__(self, database: Database, history: History, lease: Lease, *, max_entries: int, max_bytes: int) -> None:
        self._database = database
        self._history = history
        self._lease = lease
        self._specs = CompiledSpecs()
        self._loader = Loader(self._load)
        # Apart, so that guessing at secrets cannot displace those that exist.
        unknown_entries, unknown_bytes = max_entries // _UNKNOWN_SHARE, max_bytes // _UNKNOWN_SHARE
        self._known = FactCache(max_entries - unknown_entries, max_bytes - unknown_bytes)
        self._unknown = FactCache(unknown_entries, unknown_bytes)
        self._resets = 0
        self.counts = Counts()
        self.newest_seen = 0
        """The newest revision that a load was as of."""

    @property
    def entries(self) -> int:
        """How many entries are held."""
        return len(self._known) + len(self._unknown)

    @property
    def weight(self) -> int:
        """How many bytes the entries take, by an estimate."""
        return self._known.weight + self._unknown.weight

    async def get(self, *secrets: Secret, min_revision: int = 0) -> Known:
        """What is known of secrets, no older than anything that was over when this was called.

        Raises `Unavailable` where that needs the database and it cannot answer (`DATABASE_UNAVAILABLE`),
        or has not reached `min_revision` (`REVISION_NOT_REACHED`).
        """
        known = self._from_memory(secrets, min_revision)
        if known is not None:
            self.counts.hits += 1
            return known
        self.counts.misses += 1
        loaded = await self._loader.get([digest for secret in secrets for digest in secret])
        if loaded.revision < min_revision:
            raise Unavailable("REVISION_NOT_REACHED", f"the database is at revision {loaded.revision}")
        found = tuple(next((loaded.facts[d] for d in secret if d in loaded.facts), None) for secret in secrets)
        return Known(found, loaded.revision)

    async def digests_of(self, key: ApiKeyName) -> Secret:
        """By which digests to ask for the facts of a key whose holder presents no secret; none for no such key.

        Costs a round trip. Raises `Unavailable` where the database cannot answer.
        """
        return await facts.digests(self._database, key)

    def _from_memory(self, secrets: Sequence[Secret], min_revision: int) -> Known | None:
        if not self._lease.is_held():
            self.counts.without_lease += 1
            return None
        self._drop_what_a_reset_left()
        found = [self._find(secret) for secret in secrets]
        held = [entry for entry in found if entry is not None]
        revision = min(entry.verified for entry in held) if held else -1
        if len(held) < len(found) or revision < min_revision:
            return None
        return Known(tuple(entry.fact for entry in held), revision)

    def _find(self, secret: Secret) -> Entry | None:
        """An entry that tells all about a secret and holds."""
        entry = _IMPOSSIBLE
        for digest in secret:
            known = self._known.get(digest)
            if known is not None and known.fact is not None:
                return known if self._history.holds(known) else None
        for digest in secret:
            unknown = self._unknown.get(digest)
            if unknown is None or not self._history.holds(unknown):
                return None
            entry = unknown if unknown.verified < entry.verified else entry
        return entry

    async def _load(self, digests: Sequence[Digest]) -> Loaded:
        resets = self._history.resets
        loaded = await facts.load(self._database, self._specs, digests)
        self.counts.loads += 1
        self.newest_seen = max(self.newest_seen, loaded.revision)
        self._drop_what_a_reset_left()
        if resets == self._history.resets:
            for digest in digests:
                fact = loaded.facts.get(digest)
                if fact is not None or digest in self._known:
                    self._known.put(digest, fact, loaded.revision)
                if fact is None:
                    self._unknown.put(digest, None, loaded.revision)
        return loaded

    def _drop_what_a_reset_left(self) -> None:
        if self._resets != self._history.resets:
            self._resets = self._history.resets
            self.newest_seen = 0
            self._known.clear()
            self._unknown.clear()
