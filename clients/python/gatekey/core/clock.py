"""The clock of leases."""

import time

# Leases run out while a machine is suspended, too; CLOCK_MONOTONIC would stand still.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds since some moment, never set back and never set forward."""
    return time.clock_gettime(_CLOCK)
