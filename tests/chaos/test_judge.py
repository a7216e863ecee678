"""The judge finds what is wrong, and accuses nothing that may be."""

from argparse import Namespace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos import report
from tests.chaos.history import (
    AFTERMATH_S,
    ALLOWED,
    Check,
    Failure,
    FaultRun,
    History,
    Kind,
    Mutation,
    Timeline,
    Transition,
    judge,
)

DISABLED, UNKNOWN = "KEY_DISABLED", "KEY_UNKNOWN"
ALWAYS = float("inf")


def timeline(*transitions: tuple[float, float, str], checks: tuple[Check, ...] = ()) -> Timeline:
    """A secret that was allowed at first: begin, end and what came of it, for every mutation."""
    return Timeline(
        "secret",
        "key",
        ALLOWED,
        [Transition(Mutation("Verb", "key", start, end), reason) for start, end, reason in transitions],
        list(checks),
    )


def kinds(*transitions: tuple[float, float, str], start: float, end: float, reason: str) -> list[Kind]:
    """What the judge says of one check."""
    check = Check(start, end, 0, reason)
    violations = list(judge([timeline(*transitions, checks=(check,))]))
    assert all(violation.check == check for violation in violations)
    return [violation.kind for violation in violations]


DISABLING, ENABLING = (10.0, 11.0, DISABLED), (20.0, 21.0, ALLOWED)


@pytest.mark.parametrize(
    ("start", "end", "reason", "kind"),
    [
        (11.001, 12, ALLOWED, Kind.ALLOWED),
        (19, 19.5, ALLOWED, Kind.ALLOWED),
        (1, 9.999, DISABLED, Kind.DENIED),
        (21.001, 22, DISABLED, Kind.DENIED),
        (99, 99.5, UNKNOWN, Kind.DENIED),
        (12, 13, UNKNOWN, Kind.REASON),
        (10.5, 10.6, UNKNOWN, Kind.REASON),
    ],
)
def test_an_answer_that_was_wrong_all_the_time_is_found(start: float, end: float, reason: str, kind: Kind) -> None:
    assert kinds(DISABLING, ENABLING, start=start, end=end, reason=reason) == [kind]


@pytest.mark.parametrize(
    ("start", "end", "reasons"),
    [
        (1, 9, {ALLOWED}),
        (9, 10.5, {ALLOWED, DISABLED}),
        (10.1, 10.9, {ALLOWED, DISABLED}),
        # Not after the mutation had returned, but when it did.
        (11.0, 15, {ALLOWED, DISABLED}),
        (12, 19, {DISABLED}),
        (12, 30, {ALLOWED, DISABLED}),
        (1, 30, {ALLOWED, DISABLED}),
        (22, 23, {ALLOWED}),
    ],
)
def test_an_answer_that_was_right_at_some_moment_of_its_check_is_not_accused(
    start: float, end: float, reasons: set[str]
) -> None:
    accused = {
        reason
        for reason in (ALLOWED, DISABLED, UNKNOWN)
        if kinds(DISABLING, ENABLING, start=start, end=end, reason=reason)
    }
    assert accused == {ALLOWED, DISABLED, UNKNOWN} - reasons


@pytest.mark.parametrize("reason", [ALLOWED, UNKNOWN])
def test_a_mutation_that_never_returned_may_have_been_at_any_time(reason: str) -> None:
    assert kinds((10.0, ALWAYS, UNKNOWN), start=1000, end=1001, reason=reason) == []


moments = st.lists(st.floats(0, 1000), min_size=3, max_size=60, unique=True).map(sorted)


@given(moments, st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 1000), st.floats(0, 1))), st.booleans())
def test_what_a_single_server_without_a_cache_answers_is_never_accused(
    times: list[float], spans: list[tuple[float, float, float]], is_last_open: bool
) -> None:
    """Every mutation and every check happens at one moment between its begin and its end."""
    triples = [times[i : i + 3] for i in range(0, len(times) - 2, 3)]
    transitions = [
        (start, ALWAYS if is_last_open and number == len(triples) - 1 else end, f"REASON_{number}")
        for number, (start, _, end) in enumerate(triples)
    ]
    checks = []
    for one, other, share in spans:
        start, end = min(one, other), max(one, other)
        moment = min(max(start + share * (end - start), start), end)
        made = [reason for (_, at, _), (_, _, reason) in zip(triples, transitions, strict=True) if at <= moment]
        checks.append(Check(start, end, 0, made[-1] if made else ALLOWED))
    assert list(judge([timeline(*transitions, checks=tuple(checks))])) == []


@given(moments)
def test_whatever_is_answered_from_before_the_last_mutation_is_found(times: list[float]) -> None:
    """Between two mutations, and after the last one, only one answer is right."""
    transitions = [(start, end, f"REASON_{start}") for start, end in list(pairwise(times))[::2]]
    reasons = [ALLOWED, *(reason for _, _, reason in transitions)]
    wrong = 0
    for number, (_, end, right) in enumerate(transitions):
        later = [start for start, _, _ in transitions[number + 1 : number + 2]] or [2000.0]
        quiet = (end + later[0]) / 2
        if end < quiet < later[0]:
            stale = reasons[number]
            assert kinds(*transitions, start=quiet, end=quiet, reason=right) == []
            assert kinds(*transitions, start=quiet, end=quiet, reason=stale) == [
                Kind.ALLOWED if stale == ALLOWED else Kind.REASON
            ]
            wrong += 1
    assert wrong


def test_a_violation_tells_what_happened_around_it() -> None:
    (violation,) = judge([timeline(DISABLING, checks=(Check(11.5, 11.6, 2, ALLOWED),))])
    text = violation.describe(10)
    assert "allowed after what forbids it had returned: key" in text
    assert "1.5000 –     1.6000 s  check by process 2: ALLOWED, not KEY_DISABLED" in text
    assert "0.0000 –     1.0000 s  Verb by process" in text
    assert "secret" not in text


def test_a_call_that_failed_needs_a_fault_that_explains_it() -> None:
    history = History(faults=[FaultRun("killed", 1, 10, 12, 13)])
    history.failures = [
        Failure(9, 10.5, "check UNAVAILABLE"),
        Failure(13, 13 + AFTERMATH_S, "check UNAVAILABLE"),
        Failure(1, 9, "check UNAVAILABLE"),
        Failure(13.1 + AFTERMATH_S, 20, "mutation UNAVAILABLE"),
    ]
    history.errors["mutation INTERNAL: oops"] = 1
    assert history.unexplained() == {
        "check UNAVAILABLE without a fault": 1,
        "mutation UNAVAILABLE without a fault": 1,
        "mutation INTERNAL: oops": 1,
    }


def test_only_a_mutation_that_took_something_away_and_returned_counts_as_a_revocation() -> None:
    history = History(
        mutations=[
            Mutation("RevokeApiKey", "key", 1, 2, revoked=True),
            Mutation("RevokeApiKey", "key", 3, 4, revoked=False),
            Mutation("RevokeApiKey", "key", 5, ALWAYS, revoked=True),
        ]
    )
    assert history.revocations() == {"RevokeApiKey": 1}


def test_a_run_in_which_too_little_happened_proves_nothing() -> None:
    history = History([timeline(checks=(Check(1, 2, 0, ALLOWED),))])
    assert report.problems(history, Namespace(client_caches=0, checks_at_least=1, revocations_at_least=0)) == []
    assert report.problems(history, Namespace(client_caches=0, checks_at_least=2, revocations_at_least=1)) == [
        "checks: 1, and 2 were wanted",
        "revocations: 0, and 1 were wanted",
    ]
