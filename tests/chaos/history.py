"""What was asked, changed and answered, and the judge of it.

All times are of one clock, that of the process that asked. A check's begin is read before it is sent
and a mutation's end after its answer has come, so that a check which began after a mutation's end did.
"""

import enum
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from itertools import takewhile
from math import inf
from typing import NamedTuple

from gatekey.core.lease import MAX_REMOTE_LEASE_S

ALLOWED = "ALLOWED"

FRESH_S = 0.1
"""A check that begins this soon after a mutation of its secret had returned is one that staleness would show in."""

AFTERMATH_S = 2.0
"""A call that fails this soon after a fault failed because of it: connections are made anew by and by."""


class Check(NamedTuple):
    """One answer. Where the check failed there is none, and nothing to judge."""

    start: float
    end: float
    process: int
    reason: str
    caching: bool = False
    """Whether it was answered by a client cache, or could have been."""


@dataclass(slots=True, eq=False)
class Mutation:
    """One change, with all its repetitions until it was answered: it happened between `start` and `end`, once."""

    verb: str
    target: str
    start: float
    end: float = inf
    process: int = -1
    """Which one answered it."""
    attempts: int = 0
    everywhere: bool = False
    """Whether it waited for the client caches."""
    revoked: bool = False
    """Whether some secret that was allowed was no longer."""

    def end_for(self, check: Check) -> float:
        """From when on the check must know of it: clients may be later where the mutation did not wait for them."""
        return self.end + MAX_REMOTE_LEASE_S if check.caching and not self.everywhere else self.end


class Transition(NamedTuple):
    """What a mutation made of one secret."""

    mutation: Mutation
    reason: str


@dataclass(slots=True, eq=False)
class Timeline:
    """The life of one secret: what checks of it are to be answered, and what they were."""

    secret: str = field(repr=False)
    key: str
    reason: str
    """What checks of it are to be answered at first."""
    transitions: list[Transition] = field(default_factory=list)
    """One after the other: none begins before the one before it has ended."""
    checks: list[Check] = field(default_factory=list)

    def possible(self, check: Check) -> Set[str]:
        """What the check may be answered: as it was when it began, or as anything made it until it ended."""
        over = self._over(check)
        overlapping = takewhile(lambda transition: transition.mutation.start <= check.end, self.transitions[over:])
        before = self.transitions[over - 1].reason if over else self.reason
        return {before, *(transition.reason for transition in overlapping)}

    def is_right(self, check: Check) -> bool:
        """Whether the check was answered so. Can be told as soon as it has been: nothing that comes later matters."""
        return check.reason in self.possible(check)

    def is_fresh(self, check: Check) -> bool:
        """Whether the check began just after a mutation had returned."""
        over = self._over(check)
        return over > 0 and check.start - self.transitions[over - 1].mutation.end_for(check) <= FRESH_S

    def _over(self, check: Check) -> int:
        """How many of the transitions the check must know of."""
        return bisect_left(self.transitions, check.start, key=lambda transition: transition.mutation.end_for(check))


class Kind(enum.StrEnum):
    """In which way an answer is wrong."""

    ALLOWED = "allowed after what forbids it had returned"
    DENIED = "denied without a cause"
    REASON = "denied for a reason that was over, or never was"


@dataclass(frozen=True, slots=True)
class Violation:
    """An answer that was wrong at every moment of its check."""

    kind: Kind
    check: Check
    timeline: Timeline
    possible: Set[str]

    def describe(self, origin: float) -> str:
        """The check and what happened to its key around it, with times from `origin` on."""
        check, possible = self.check, ", ".join(sorted(self.possible))
        answer = f"check by process {check.process}: {check.reason}, not {possible}"
        lines = [f"{self.kind}: {self.timeline.key}", f"  {_span(check.start, check.end, origin)}  {answer}"]
        lines += [
            f"  {_span(mutation.start, mutation.end, origin)}  {mutation.verb} by process {mutation.process}"
            f" of {mutation.target}, sent {mutation.attempts} times: {reason}"
            for mutation, reason in self.timeline.transitions
            if check.start - 30 < mutation.end and mutation.start < check.end + 1
        ]
        return "\n".join(lines)


def judge(timelines: Iterable[Timeline]) -> Iterator[Violation]:
    """Find all wrong answers."""
    for timeline in timelines:
        for check in timeline.checks:
            if not timeline.is_right(check):
                possible = timeline.possible(check)
                yield Violation(_kind(check.reason, possible), check, timeline, possible)


def _kind(reason: str, possible: Set[str]) -> Kind:
    if reason == ALLOWED:
        return Kind.ALLOWED
    return Kind.DENIED if possible == {ALLOWED} else Kind.REASON


def _span(start: float, end: float, origin: float) -> str:
    return f"{start - origin:10.4f} – {end - origin:10.4f} s"


class Failure(NamedTuple):
    """A call that got no answer, and so none that could be wrong."""

    start: float
    end: float
    what: str


@dataclass(frozen=True, slots=True)
class FaultRun:
    """A fault that there was."""

    name: str
    process: int | None
    """Which one had it; None: all."""
    start: float
    end: float
    recovered: float
    """When every process answered again."""

    def overlaps(self, span: Check | Mutation | Failure) -> bool:
        """Whether something went on during the fault."""
        return self.start <= span.end and span.start <= self.recovered

    def explains(self, failure: Failure) -> bool:
        """Whether the fault may have brought about a failure."""
        return self.start <= failure.end and failure.start <= self.recovered + AFTERMATH_S


@dataclass(slots=True)
class History:
    """All that there was in a run."""

    timelines: list[Timeline] = field(default_factory=list)
    mutations: list[Mutation] = field(default_factory=list)
    faults: list[FaultRun] = field(default_factory=list)
    decided_by_caches: int = 0
    """How many checks client caches decided by themselves."""
    failures: list[Failure] = field(default_factory=list)
    """Those that a fault may bring about."""
    refused: int = 0
    """How many checks a process did not begin, because it had more to do than it could."""
    errors: Counter[str] = field(default_factory=Counter)
    """Those that nothing may."""

    def checks(self) -> Iterator[Check]:
        """All answers, in no particular order."""
        for timeline in self.timelines:
            yield from timeline.checks

    def fresh_checks(self) -> int:
        """How many checks began just after a mutation of their secret had returned."""
        return sum(timeline.is_fresh(check) for timeline in self.timelines for check in timeline.checks)

    def unexplained(self) -> Counter[str]:
        """How many calls failed as they never may, or as they only may under faults, without one."""
        alone = (f"{it.what} without a fault" for it in self.failures if not any(f.explains(it) for f in self.faults))
        return self.errors + Counter(alone)

    def revocations(self) -> Counter[str]:
        """How many mutations took something away and returned, by verb."""
        return Counter(m.verb for m in self.mutations if m.revoked and m.end < inf)
