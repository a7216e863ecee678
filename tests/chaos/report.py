"""What a run tells of itself."""

import argparse
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf

from tests.chaos.history import FRESH_S, Check, Failure, FaultRun, History, Kind, Mutation, Violation

_SHOWN = 5
_NO_FAULT = "none meanwhile"


def summary(history: History, violations: Sequence[Violation], origin: float) -> str:
    """The counts, and the first violations in full."""
    return "\n".join((*_counts(history), *_faults(history), *_violations(violations, history, origin)))


def problems(history: History, arguments: argparse.Namespace) -> list[str]:
    """Why the run proves nothing: too little happened."""
    counts = (
        (
            "checks decided by client caches",
            history.decided_by_caches,
            arguments.checks_at_least if arguments.client_caches else 0,
        ),
        ("checks", sum(1 for _ in history.checks()), arguments.checks_at_least),
        ("revocations", history.revocations().total(), arguments.revocations_at_least),
    )
    return [f"{name}: {count}, and {least} were wanted" for name, count, least in counts if count < least]


def _counts(history: History) -> Iterator[str]:
    reasons = Counter(check.reason for check in history.checks())
    yield from _table("checks", reasons)
    yield f"{'within ' + format(FRESH_S, '.1f') + ' s of a mutation of the key':42} {history.fresh_checks():8}"
    yield f"{'single ones decided by client caches':42} {history.decided_by_caches:8}"
    yield from _table("mutations that took something away", history.revocations())
    yield from _table("all mutations", Counter(m.verb for m in history.mutations if m.end < inf))
    repeated = sum(mutation.attempts > 1 for mutation in history.mutations)
    yield f"{'of them sent more than once':42} {repeated:8}"
    yield from _table("calls that failed", Counter(failure.what for failure in history.failures))
    yield f"{'checks refused under too much load':42} {history.refused:8}"
    yield from _table("errors that no fault explains", history.unexplained())


def _table(title: str, counts: Counter[str]) -> Iterator[str]:
    yield f"{title:42} {counts.total():8}"
    for name, count in counts.most_common():
        yield f"  {name:40} {count:8}"


def _faults(history: History) -> Iterator[str]:
    yield (
        f"{'faults':42} {len(history.faults):8}  at longest  recovered after  failed calls"
        f"  slowest check  slowest mutation"
    )
    during = _by_fault(history.faults)
    failed = Counter(name for failure in history.failures for name in during(failure))
    checks = _longest((name, check) for check in history.checks() for name in during(check))
    mutations = _longest((name, it) for it in history.mutations if it.end < inf for name in during(it))
    for name in [*sorted({fault.name for fault in history.faults}), _NO_FAULT]:
        runs = [fault for fault in history.faults if fault.name == name]
        lasted = max((fault.end - fault.start for fault in runs), default=0)
        recovered = max((fault.recovered - fault.end for fault in runs), default=0)
        yield (
            f"  {name:40} {len(runs) or '':8} {_seconds(lasted):>11} {_seconds(recovered):>16} {failed[name]:13}"
            f" {_seconds(checks[name]):>14} {_seconds(mutations[name]):>17}"
        )


def _by_fault(faults: Sequence[FaultRun]) -> Callable[[Check | Mutation | Failure], Sequence[str]]:
    """Tells the names of the faults during which something went on. No fault begins before the last one is over."""
    starts, ends = [fault.start for fault in faults], [fault.recovered for fault in faults]

    def during(call: Check | Mutation | Failure) -> Sequence[str]:
        overlapping = faults[bisect_left(ends, call.start) : bisect_right(starts, call.end)]
        return [fault.name for fault in overlapping] or [_NO_FAULT]

    return during


def _longest(calls: Iterable[tuple[str, Check | Mutation]]) -> Mapping[str, float]:
    longest: defaultdict[str, float] = defaultdict(float)
    for name, call in calls:
        longest[name] = max(longest[name], call.end - call.start)
    return longest


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds else ""


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
