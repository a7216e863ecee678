"""What a run tells of itself."""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from math import inf

from tests.chaos.history import FRESH_S, Check, FaultRun, History, Kind, Mutation, Violation

_SHOWN = 5


def summary(history: History, violations: Sequence[Violation], origin: float) -> str:
    """The counts, and the first violations in full."""
    return "\n".join((*_counts(history), *_faults(history, origin), *_violations(violations, history, origin)))


def problems(history: History, arguments: argparse.Namespace) -> list[str]:
    """Why the run proves nothing: too little happened."""
    counts = (
        ("checks", sum(1 for _ in history.checks()), arguments.checks_at_least),
        ("revocations", history.revocations().total(), arguments.revocations_at_least),
    )
    return [f"{name}: {count}, and {least} were wanted" for name, count, least in counts if count < least]


def _counts(history: History) -> Iterator[str]:
    reasons = Counter(check.reason for check in history.checks())
    yield from _table("checks", reasons)
    yield f"{'within ' + format(FRESH_S, '.1f') + ' s of a mutation of the key':42} {history.fresh_checks():8}"
    yield from _table("mutations that took something away", history.revocations())
    yield from _table("all mutations", Counter(m.verb for m in history.mutations if m.end < inf))
    repeated = sum(mutation.attempts > 1 for mutation in history.mutations)
    yield f"{'of them sent more than once':42} {repeated:8}"
    yield from _table("calls that failed", Counter(failure.what for failure in history.failures))
    yield from _table("errors that no fault explains", history.unexplained())


def _table(title: str, counts: Counter[str]) -> Iterator[str]:
    yield f"{title:42} {counts.total():8}"
    for name, count in counts.most_common():
        yield f"  {name:40} {count:8}"


def _faults(history: History, origin: float) -> Iterator[str]:
    yield f"{'faults':42} {len(history.faults):8}"
    if history.faults:
        yield "        at  what                         for  recovered in   failed  slowest check  mutation"
    for fault in history.faults:
        failed = sum(fault.overlaps(failure) for failure in history.failures)
        yield (
            f"  {fault.start - origin:6.1f} s  {_name(fault):26} {fault.end - fault.start:3.1f} s"
            f"  {fault.recovered - fault.end:10.1f} s {failed:8}"
            f" {_longest(fault, history.checks()):12.1f} s {_longest(fault, history.mutations):7.1f} s"
        )


def _longest(fault: FaultRun, calls: Iterable[Check | Mutation]) -> float:
    return max((call.end - call.start for call in calls if fault.overlaps(call)), default=0)


def _violations(violations: Sequence[Violation], history: History, origin: float) -> Iterator[str]:
    yield from _table("wrong answers", Counter(str(violation.kind) for violation in violations))
    first = sorted(violations, key=lambda violation: (violation.kind is not Kind.ALLOWED, violation.check.end))[:_SHOWN]
    if first:
        yield f"the first one after {first[0].check.end - origin:.1f} s"
    for violation in first:
        yield ""
        yield violation.describe(origin)
        for fault in history.faults:
            if fault.overlaps(violation.check):
                yield f"  during: {_name(fault)}"


def _name(fault: FaultRun) -> str:
    return fault.name if fault.process is None else f"{fault.name} (process {fault.process})"
