"""The check: the snapshots of the caller and of the key, and the decision."""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from gatekey.core.decisions import KEY_UNKNOWN, Decision, KeySnapshot, Request, decide
from gatekey.core.errors import DomainError
from gatekey.core.secrets import Secret

from gatekey_server.authorization import callers
from gatekey_server.authorization.callers import Caller
from gatekey_server.freshness.snapshot_source import Lookup, LookupRequest, SnapshotSource, VersionedSnapshot
from gatekey_server.store import pauses

MAX_QUICK_GRANTS = 2000
"""How many grants are compared without a pause, which takes some milliseconds."""


class Question(NamedTuple):
    """A request to decide for the holder of a key, by a snapshot of `min_revision` or later."""

    key: Secret
    request: Request
    min_revision: int = 0


class CheckResult(NamedTuple):
    """A decision, and the snapshot that it was made from; None for a key that is unknown to the caller."""

    decision: Decision
    snapshot: KeySnapshot | None
    revision: int
    """The decision is right as of this revision."""


class Checking(NamedTuple):
    """Check requests of the holder of a service token, whose snapshots are in memory or being loaded."""

    questions: Sequence[Question]
    now: datetime
    reached: int
    """The revision that this process had applied when the request came."""
    lookup: Lookup

    @property
    def loading(self) -> "asyncio.Future[Any] | None":
        """The load to wait for; None where all snapshots are in memory."""
        return self.lookup.loading

    @property
    def is_quick(self) -> bool:
        """Whether no load is needed, and the grants are few enough to compare without pauses."""
        if self.loading is not None:
            return False
        snapshots = [known.snapshot for known in self.lookup.found if known is not None and known.snapshot is not None]
        return sum(
            len(snapshot.grants.rules) + len(snapshot.compiled.role_grants(snapshot.role).rules)
            for snapshot in snapshots
        ) <= (MAX_QUICK_GRANTS)

    def result(self) -> tuple[Caller, Iterator[CheckResult | DomainError]]:
        """Return or raise as `check_each`, once `loading` is done. Each decision is made when it is taken."""
        return _decide_each(self.lookup.result(), self.questions, self.now, self.reached)


def begin(source: SnapshotSource, token: Secret, questions: Sequence[Question], now: datetime) -> Checking | None:
    """Begin `check_each`, without waiting; None where there is no lease."""
    lookup = source.look_up(_wanted(token, questions))
    return None if lookup is None else Checking(questions, now, source.applied, lookup)


async def check_each(
    source: SnapshotSource, token: Secret, questions: Sequence[Question], now: datetime
) -> tuple[Caller, list[CheckResult | DomainError]]:
    """Decide requests of the holder of a service token. One query loads all snapshots that are not in memory.

    A request's place holds an error where it cannot be decided. Raises `Unauthenticated` (`TOKEN_INVALID`), and
    `Unavailable` or `Overloaded` where the token's own snapshot cannot be loaded.
    """
    reached = source.applied
    caller, results = _decide_each(await source.get_each(_wanted(token, questions)), questions, now, reached)
    return caller, await pauses.each(results)


def _wanted(token: Secret, questions: Sequence[Question]) -> LookupRequest:
    return [(token, 0), *[(question.key, question.min_revision) for question in questions]]


def _decide_each(
    found: Sequence[VersionedSnapshot | DomainError], questions: Sequence[Question], now: datetime, reached: int
) -> tuple[Caller, Iterator[CheckResult | DomainError]]:
    asking, *keys = found
    caller = callers.identify(asking, now)
    return caller, (
        _decide(callers.as_seen(caller, known, reached, question.min_revision), question.request, now)
        for known, question in zip(keys, questions, strict=True)
    )


def _decide(seen: VersionedSnapshot | DomainError, request: Request, now: datetime) -> CheckResult | DomainError:
    if isinstance(seen, DomainError):
        return seen
    snapshot, revision = seen
    decision = decide(snapshot, request, now)
    return CheckResult(decision, None if decision is KEY_UNKNOWN else snapshot, revision)
