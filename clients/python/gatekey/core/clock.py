"""The clock of leases."""

import time

# Leases must expire while a machine is suspended, too. CLOCK_MONOTONIC would stand still.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Return seconds since an arbitrary moment, on a clock that is never set."""
    return time.clock_gettime(_CLOCK)
