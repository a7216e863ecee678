"""How long a process may answer from its cache without asking the database again."""

from gatekey_server.freshness import clock

LEASE_S = 3.0
"""How long a lease lasts. The same for all processes of a deployment: mutations wait this long at most."""

# The clocks of two machines may run apart by this much while a lease lasts, which is 20 times what
# the worst oscillators and time daemons do.
_CLOCK_DRIFT = 0.01

SURELY_OVER_S = LEASE_S * (1 + _CLOCK_DRIFT)
"""After how long another process's lease is over, by this one's clock."""


class Lease:
    """A promise of the past: everything that was committed before `until - LEASE_S` has been applied."""

    __slots__ = ("until",)

    def __init__(self) -> None:
        self.until = float("-inf")

    def renew(self, asked_at: float) -> None:
        """Take up a lease; `asked_at` was read before the database was asked."""
        self.until = asked_at + LEASE_S

    def is_held(self) -> bool:
        """Whether the cache may answer now."""
        return clock.now() < self.until

    def give_up(self) -> None:
        """Answer nothing from the cache until the lease is renewed."""
        self.until = float("-inf")
