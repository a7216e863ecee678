"""Leases: how long a cache may decide without new information."""

from gatekey.core import clock

LEASE_S = 3.0
"""How long a lease lasts. All processes of a deployment must agree: mutations wait this long at most."""

# The clocks of two machines may drift apart by this much while a lease lasts. It is 20 times the drift of the worst
# oscillators and time daemons.
_CLOCK_DRIFT = 0.01

MAX_REMOTE_LEASE_S = LEASE_S * (1 + _CLOCK_DRIFT)
"""The time after which another process's lease has expired, by this process's clock."""


class Lease:
    """A lease: everything that was committed before `until - LEASE_S` has been applied."""

    __slots__ = ("until",)

    def __init__(self) -> None:
        self.until = float("-inf")

    def extend(self, asked_at: float, lasts_s: float = LEASE_S) -> None:
        """Start a new lease. `asked_at` is the clock before the request for it was sent."""
        self.until = asked_at + lasts_s

    def rest_s(self) -> float:
        """Return for how long the lease is held from now on; 0 or less where it is not held."""
        return self.until - clock.now()

    def is_held(self) -> bool:
        """Whether the cache may decide now."""
        return clock.now() < self.until

    def release(self) -> None:
        """End the lease: the cache must decide nothing until there is a new one."""
        self.until = float("-inf")
