"""The index of what has changed, which decides whether a cached entry is current."""

import uuid
from collections.abc import Hashable
from typing import TypeVar

from gatekey.core.changes import NOWHERE, Poll, Position, ScopeChange
from gatekey.core.secrets import Digest
from gatekey.core.snapshot_cache import Entry

K = TypeVar("K", bound=Hashable)

MAX_SCOPES = 100_000
"""How many changed scopes of each kind are remembered."""
MAX_STAMPS = 10_000
"""How many revisions' stamps are remembered."""


class _LastChanges(dict[K, int]):
    """The revision at which each scope changed last, in the order of the revisions."""

    def note(self, scope: K, revision: int) -> None:
        self.pop(scope, None)
        self[scope] = revision

    def forget_half(self) -> int:
        """Forget the older half. Returns a revision at or after the last change of all of these."""
        kept = list(self.items())[len(self) // 2 :]
        self.clear()
        self.update(kept)
        return kept[0][1]


class InvalidationIndex:
    """The revision at which each scope changed last.

    An entry that was verified at a revision is current if none of its scopes changed after that. Each use verifies
    it again, so an entry in use does not depend on how far back the index reaches.
    """

    def __init__(self) -> None:
        self.applied = NOWHERE
        self.resets = 0
        """How often the history broke off, so that everything had to be dropped."""
        self.lease_gaps = 0
        """How often the lease was lost. Results of loads that began before a loss must not be kept."""
        self._stamps: dict[int, uuid.UUID] = {}
        self._unconfirmed: dict[int, uuid.UUID | None] = {}
        """The stamps of revisions that loads were as of, but that were not applied yet."""
        self._floor = 0
        self._unknown_floor = 0
        self._keys = _LastChanges[uuid.UUID]()
        self._principals = _LastChanges[int]()
        self._tenants = _LastChanges[int]()
        self._products = _LastChanges[str]()
        self._digests = _LastChanges[Digest]()

    def apply(self, poll: Poll) -> bool:
        """Apply the result of a poll. Returns False where the history broke off: then no entry may be kept."""
        continuous = poll.changes is not None and poll.head.revision >= self.applied.revision
        if continuous:
            for change in poll.changes or ():
                self._remember(change)
                self._stamps[change.revision] = change.stamp
            self._forget_the_oldest()
        self._stamps[poll.head.revision] = poll.head.stamp
        continuous = continuous and self._confirms_loads(poll.head.revision)
        if not continuous:
            self._reset(poll.head.revision)
            self._stamps[poll.head.revision] = poll.head.stamp
        self.applied = poll.head
        return continuous

    @property
    def newest_loaded(self) -> int:
        """The newest revision that a load was as of, but that was not applied yet; 0 where there is none."""
        return max(self._unconfirmed, default=0)

    def includes(self, position: Position) -> bool:
        """Whether this position, or a later one of the same history, was applied, as far as it is remembered."""
        return self._stamps.get(position.revision) == position.stamp

    def keeps(self, revision: int, stamp: uuid.UUID | None) -> bool:
        """Note the revision that a load was as of. Returns False where it is not in the history that was applied.

        The stamp is None where only the revision is known.
        """
        if revision > self.applied.revision:
            return self._unconfirmed.setdefault(revision, stamp) == stamp
        return stamp is None or self.includes(Position(revision, stamp))

    def on_lease_gap(self) -> None:
        """Drop loads from revisions that were not applied yet: there may have been a failover that lost them."""
        self.lease_gaps += 1
        if self._unconfirmed and self.applied.revision >= 0:
            self._reset(self.applied.revision)
            self._stamps[self.applied.revision] = self.applied.stamp

    def is_current(self, entry: Entry) -> bool:
        """Whether the entry is right as of the applied revision, or of a later one."""
        applied = self.applied.revision
        since = entry.verified
        if since >= applied:
            return True
        if since < self._floor or not self._is_unchanged(entry, since):
            return False
        entry.verified = applied
        return True

    def _is_unchanged(self, entry: Entry, since: int) -> bool:
        snapshot = entry.snapshot
        if snapshot is None:
            return since >= self._unknown_floor and self._digests.get(entry.digest, 0) <= since
        tenant_uid, key_uid = snapshot.uid
        return (
            self._keys.get(key_uid, 0) <= since
            and (snapshot.principal_uid is None or self._principals.get(snapshot.principal_uid, 0) <= since)
            and self._tenants.get(tenant_uid, 0) <= since
            and self._products.get(snapshot.product, 0) <= since
        )

    def _remember(self, change: ScopeChange) -> None:
        revision = change.revision
        if change.key_uid is not None:
            self._keys.note(change.key_uid, revision)
            if change.digest is not None:
                self._digests.note(change.digest, revision)
        elif change.principal_uid is not None:
            self._principals.note(change.principal_uid, revision)
        else:
            # A scope with many secrets, possibly new ones.
            self._unknown_floor = revision
            if change.tenant_uid is not None:
                self._tenants.note(change.tenant_uid, revision)
            elif change.product is not None:
                self._products.note(change.product, revision)
            else:
                self._floor = revision

    def _confirms_loads(self, head: int) -> bool:
        """Whether the loads from revisions that are now applied were of this history, and not of a copy of it."""
        for revision, stamp in list(self._unconfirmed.items()):
            if revision <= head:
                del self._unconfirmed[revision]
                if stamp is not None and self._stamps.get(revision) != stamp:
                    return False
        return True

    def _forget_the_oldest(self) -> None:
        if len(self._stamps) > MAX_STAMPS:
            self._stamps = dict(list(self._stamps.items())[len(self._stamps) // 2 :])
        for scopes in (self._keys, self._principals, self._tenants, self._products, self._digests):
            if len(scopes) > MAX_SCOPES:
                self._floor = max(self._floor, scopes.forget_half())

    def _reset(self, floor: int) -> None:
        self.resets += 1
        self._stamps.clear()
        self._unconfirmed.clear()
        for scopes in (self._keys, self._principals, self._tenants, self._products, self._digests):
            scopes.clear()
        self._floor = self._unknown_floor = floor
