"""How long a cache may decide without asking anybody."""

from gatekey.core import clock

LEASE_S = 3.0
"""How long a lease lasts. The same for all processes of a deployment: mutations wait this long at most."""

# The clocks of two machines may run apart by this much while a lease lasts, which is 20 times what
# the worst oscillators and time daemons do.
_CLOCK_DRIFT = 0.01

MAX_REMOTE_LEASE_S = LEASE_S * (1 + _CLOCK_DRIFT)
"""After how long another process's lease is over, by this one's clock."""


class Lease:
    """A promise of the past: everything that was committed before `until - LEASE_S` has been applied."""

    __slots__ = ("until",)

    def __init__(self) -> None:
        self.until = float("-inf")

    def extend(self, asked_at: float, lasts_s: float = LEASE_S) -> None:
        """Take up a lease; `asked_at` was read by `clock` before whoever grants it was asked."""
        self.until = asked_at + lasts_s

    def rest_s(self) -> float:
        """For how long the lease is held from now on; 0 or less where it is not."""
        return self.until - clock.now()

    def is_held(self) -> bool:
        """Whether the cache may answer now."""
        return clock.now() < self.until

    def release(self) -> None:
        """Answer nothing from the cache until the lease is taken up again."""
        self.until = float("-inf")
