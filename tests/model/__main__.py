"""Explores larger scenarios than the tests do: `python -m tests.model`. Takes a minute and 1 GB."""

import sys
import time
from collections.abc import Mapping

from tests.model.freshness import Kind, Scenario, explore

CHANGE, OTHER, REPETITION = Kind.CHANGES, Kind.CHANGES_ANOTHER, Kind.REPEATS

LARGER: Mapping[str, Scenario] = {
    "two changes, a longer lease": Scenario(mutations=(CHANGE, CHANGE)),
    "a change and a repetition at a process that leaves": Scenario(
        mutations=(CHANGE, REPETITION), runner=0, leaves=True
    ),
    "three watchers, a longer lease": Scenario(watchers=3),
    "a failover, and a change of something else": Scenario(lease=1, mutations=(OTHER, CHANGE), fails_over=True),
    "a failover between two changes, two watchers": Scenario(
        lease=1, mutations=(CHANGE, CHANGE), fails_over=True, watchers=2
    ),
    "a failover between two changes by one of the processes": Scenario(
        lease=1, mutations=(CHANGE, CHANGE), fails_over=True, runner=0
    ),
}


def main() -> int:
    """Answers 1 where there is a way to a stale answer."""
    for name, scenario in LARGER.items():
        started_at = time.process_time()
        found = explore(scenario)
        seconds = time.process_time() - started_at
        sys.stdout.write(f"{found.states:>10,} states {seconds:6.0f} s  {name}\n")
        sys.stdout.flush()
        if found.counterexample:
            sys.stdout.write("\n".join(found.counterexample) + "\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
