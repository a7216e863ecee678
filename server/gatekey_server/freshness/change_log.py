"""The latest changes, for clients that follow this process as it follows the database."""

import uuid
from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime

from gatekey.core.changes import NOWHERE, Poll, Position, ScopeChange

MAX_LOGGED_CHANGES = 10_000
"""How many changes are remembered."""

MAX_TOLD_CHANGES = 1000
"""How many changes one response holds, which takes about a millisecond to write. A client that has missed more
starts anew."""


class ChangeLog:
    """The changes that this process has applied, in the order of the revisions."""

    def __init__(self) -> None:
        self.head = NOWHERE
        self.scope_key = uuid.UUID(int=0)
        """The key of the pseudonyms that clients know scopes by."""
        self.server: datetime | None = None
        """The start time of the database server that the newest changes came from."""
        self._changes: list[ScopeChange] = []
        self._stamps: dict[int, uuid.UUID] = {}

    def add(self, poll: Poll, *, is_continuous: bool) -> None:
        """Add the changes that were applied. Where they do not continue the log, drop the older ones."""
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
        """Whether the log has applied this position or a later one of the same history, as far as it is remembered."""
        return self._stamps.get(position.revision) == position.stamp

    def since(self, position: Position) -> Sequence[ScopeChange] | None:
        """Return the changes since a position; None where they are not known, or more than `MAX_TOLD_CHANGES`."""
        if not self.includes(position):
            return None
        start = bisect_right(self._changes, position.revision, key=lambda change: change.revision)
        return self._changes[start:] if len(self._changes) - start <= MAX_TOLD_CHANGES else None

    def _forget_half(self) -> None:
        # A revision's changes stay together: a client at the revision before must get all of them.
        oldest = self._changes[len(self._changes) // 2].revision
        self._changes = [change for change in self._changes if change.revision > oldest]
        self._stamps = {revision: stamp for revision, stamp in self._stamps.items() if revision >= oldest}
