"""The model of the freshness protocol: it needs every guard, and with all of them nothing stale is answered."""

import re
from collections.abc import Mapping, Sequence

import pytest

from tests.model.freshness import Guard, Kind, Restores, Scenario, explore

CHANGE, OTHER, REPETITION = Kind.CHANGES, Kind.CHANGES_ANOTHER, Kind.REPEATS

ONE_CHANGE = Scenario(lease=1)
TWO_CHANGES = Scenario(lease=1, mutations=(CHANGE, CHANGE))
A_REPETITION = Scenario(lease=1, mutations=(CHANGE, REPETITION))
OWN_PROCESS = Scenario(lease=1, runner=0)
LEAVING = Scenario(lease=1, leaves=True)
TWO_WATCHERS = Scenario(lease=1, watchers=2)
FAILOVER = Scenario(lease=1, fails_over=True)
FAILOVER_BETWEEN = Scenario(lease=1, mutations=(CHANGE, CHANGE), fails_over=True)
# A client's cache knows revisions without their stamps.
FAILOVER_BEHIND_A_CLIENT = FAILOVER_BETWEEN.without(Guard.LOADED_IN_THIS_HISTORY)
RESTORE = Scenario(lease=1, watchers=0, mutations=(CHANGE, CHANGE), restores=Restores.UNNOTICED)
RESTORE_OWN_PROCESS = Scenario(lease=1, watchers=0, mutations=(CHANGE, CHANGE), restores=Restores.UNNOTICED, runner=0)
NOTICED_RESTORE = Scenario(lease=1, watchers=0, mutations=(CHANGE, CHANGE), restores=Restores.NOTICED)
NOTICED_RESTORE_REPETITION = Scenario(
    lease=1, watchers=0, mutations=(CHANGE, REPETITION), restores=Restores.NOTICED, runner=0
)

NEEDED_IN: Mapping[Guard, Scenario] = {
    Guard.LEASE_AT_EACH_HIT: ONE_CHANGE,
    Guard.CLOCK_BEFORE_POLL: ONE_CHANGE,
    Guard.APPLIED_BEFORE_LEASE: ONE_CHANGE,
    Guard.REVISION_OF_SNAPSHOT: ONE_CHANGE,
    Guard.LOCK_TO_COMMIT: TWO_CHANGES,
    Guard.NO_LEASE_WITHOUT_ROW: ONE_CHANGE,
    Guard.READ_AFTER_COMMIT: ONE_CHANGE,
    Guard.APPLIED_BEFORE_ACKNOWLEDGED: ONE_CHANGE,
    Guard.UNCHANGED_FOR_A_LEASE: ONE_CHANGE,
    Guard.NO_TWO_POLLS_ALIKE: TWO_WATCHERS,
    Guard.LEASE_ENDS_BEFORE_ROW: LEAVING,
    Guard.FALLBACK_AFTER_LEASE: ONE_CHANGE,
    Guard.OWN_PROCESS_APPLIES: OWN_PROCESS,
    Guard.REPETITIONS_WAIT: A_REPETITION,
    Guard.NO_OLD_LOAD_JOINED: ONE_CHANGE,
    Guard.STAMPS: FAILOVER_BETWEEN,
    Guard.ACKNOWLEDGED_IN_THIS_HISTORY: FAILOVER_BETWEEN,
    Guard.LOADED_IN_THIS_HISTORY: RESTORE,
    Guard.OWN_POSITION: RESTORE_OWN_PROCESS,
    Guard.COPY_NOTICED_BY_ALL: NOTICED_RESTORE_REPETITION,
    Guard.COPY_BEYOND_ORIGINAL: NOTICED_RESTORE,
    Guard.COPY_WAITS_A_LEASE: NOTICED_RESTORE,
    Guard.NOTHING_NEWER_SURVIVES_A_LAPSE: FAILOVER_BEHIND_A_CLIENT,
    Guard.FAILOVER_TAKES_A_LEASE: FAILOVER_BETWEEN,
    Guard.FORMER_PRIMARY_IS_FENCED: FAILOVER,
}


def marks(scenario: Scenario) -> Sequence[pytest.MarkDecorator]:
    """Two mutations have many more states than one: seconds of them."""
    return [pytest.mark.drill] if len(scenario.mutations) > 1 else []


@pytest.mark.slow
@pytest.mark.parametrize(
    "guard", [pytest.param(guard, id=guard.name, marks=marks(NEEDED_IN[guard])) for guard in Guard]
)
def test_without_any_one_guard_a_check_is_answered_from_older_snapshots(guard: Guard) -> None:
    found = explore(NEEDED_IN[guard].without(guard))
    assert found.counterexample, f"it makes no difference whether {guard.value}"
    assert found.counterexample[-1].endswith("STALE")


EXPLORED: Mapping[str, tuple[Scenario, int]] = {
    "one change": (ONE_CHANGE, 5_000),
    "two changes": (TWO_CHANGES, 30_000),
    "a repetition": (A_REPETITION, 15_000),
    "its own process": (OWN_PROCESS, 5_000),
    "leaving": (LEAVING, 5_000),
    "two watchers": (TWO_WATCHERS, 10_000),
    "a failover": (FAILOVER, 8_000),
    "a failover between two changes": (FAILOVER_BETWEEN, 70_000),
    "a failover behind a client": (FAILOVER_BEHIND_A_CLIENT, 70_000),
    "a restore": (RESTORE, 20_000),
    "a restore by its own process": (RESTORE_OWN_PROCESS, 20_000),
    "a noticed restore": (NOTICED_RESTORE, 50_000),
    "a noticed restore and a repetition": (NOTICED_RESTORE_REPETITION, 25_000),
    "a longer lease": (Scenario(lease=2, runner=0, leaves=True), 10_000),
    "a change of something else": (Scenario(lease=1, mutations=(OTHER, CHANGE)), 60_000),
}
"""With how many states at the least: so many are there to be gone through."""

IN_EACH = {
    "time passes",
    "M commits revision",
    "M returns: all have acknowledged it",
    "M returns: it has waited for as long as a lease",
    "P reads its clock and asks",
    "the database answers P's poll, at revision",
    "P hears that it is not registered, and registers",
    "P loses its poll",
    "P applies",
    "P renews its lease",
    "somebody sees P's row",
    "somebody removes P, whose row was the same for a lease",
    "a check asks P, which sends a load",
    "the database reads P's load, at revision",
    "P's load arrives",
    "a check asks P, which answers from memory",
}
IN_SOME = {
    "a check asks P, which answers from memory, unchanged since it was loaded": "a change of something else",
    "M finds everything done at revision": "a repetition",
    "P leaves, and a new one starts": "leaving",
    "a failover loses what came after revision": "a failover",
    "a failover loses what came after revision, and the registrations": "a failover",
    "a dump of revision is restored": "a restore",
    "M commits revision, the first in a copy": "a noticed restore",
    "a dump of revision is restored, which does not know all processes": "a noticed restore",
    "a check asks P with M's revision": "a noticed restore",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(each)) for name, (each, _) in EXPLORED.items()])
def test_with_all_guards_no_check_is_answered_from_older_snapshots(name: str) -> None:
    scenario, floor = EXPLORED[name]
    assert scenario.guards == set(Guard) - ({Guard.LOADED_IN_THIS_HISTORY} if "client" in name else set())
    found = explore(scenario)
    assert found.counterexample is None, "\n".join(found.counterexample or ())
    assert found.states > floor
    seen = {re.sub(r" ?\d+", "", what) for what in found.seen}
    in_each = IN_EACH if scenario.watchers else {what for what in IN_EACH if "somebody" not in what}
    assert seen >= in_each | {what for what, where in IN_SOME.items() if where == name}


def test_what_shows_that_a_guard_is_needed_is_explored_wholly_with_it() -> None:
    explored = [scenario for scenario, _ in EXPLORED.values()]
    assert all(scenario in explored for scenario in NEEDED_IN.values())
