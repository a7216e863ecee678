"""The changes of late, for clients that follow this process as it follows the database."""

import uuid
from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime

from gatekey.core.changes import NOWHERE, Poll, Position, ScopeChange

MAX_LOGGED_CHANGES = 10_000
"""How many changes are remembered."""

MAX_TOLD_CHANGES = 1000
"""How many changes are told at once; whoever has missed more starts anew. Telling them takes about a millisecond."""


class ChangeLog:
    """What this process has applied, in the order of the revisions."""

    def __init__(self) -> None:
        self.head = NOWHERE
        self.scope_key = uuid.UUID(int=0)
        """With which scopes are given names for clients."""
        self.server: datetime | None = None
        """When the database's server was started that told the last of it."""
        self._changes: list[ScopeChange] = []
        self._stamps: dict[int, uuid.UUID] = {}

    def add(self, poll: Poll, *, is_continuous: bool) -> None:
        """Take down what was applied; where it is not the continuation of what is here, that is forgotten."""
        if not is_continuous:
            self._changes.clear()
            self._stamps.clear()
        self._changes += poll.changes or ()
        self._stamps |= {change.revision: change.stamp for change in poll.changes or ()}
        self._stamps[poll.head.revision] = poll.head.stamp
        self.head, self.server, self.scope_key = poll.head, poll.server, poll.scope_key
        if len(self._changes) > MAX_LOGGED_CHANGES:
            self._forget_half()

    def includes(self, position: Position) -> bool:
        """Whether what was applied is that position, or comes after it in the same history, as far as is remembered."""
        return self._stamps.get(position.revision) == position.stamp

    def since(self, position: Position) -> Sequence[ScopeChange] | None:
        """What has changed since a position; None where that cannot be told, or is more than is told at once."""
        if not self.includes(position):
            return None
        start = bisect_right(self._changes, position.revision, key=lambda change: change.revision)
        return self._changes[start:] if len(self._changes) - start <= MAX_TOLD_CHANGES else None

    def _forget_half(self) -> None:
        # A revision's changes stay together: whoever knows the one before is to be told all of them.
        oldest = self._changes[len(self._changes) // 2].revision
        self._changes = [change for change in self._changes if change.revision > oldest]
        self._stamps = {revision: stamp for revision, stamp in self._stamps.items() if revision >= oldest}
