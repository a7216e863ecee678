"""How long a process may answer without asking the primary again, and which server that is."""

import asyncio
from datetime import datetime

from gatekey_server.domain.errors import Unavailable
from gatekey_server.freshness import clock

LEASE_S = 3.0
"""How long a lease lasts. The same for all processes of a deployment: mutations wait this long at most."""

# The clocks of two machines may run apart by this much while a lease lasts, which is 20 times what
# the worst oscillators and time daemons do.
_CLOCK_DRIFT = 0.01

MAX_REMOTE_LEASE_S = LEASE_S * (1 + _CLOCK_DRIFT)
"""After how long another process's lease is over, by this one's clock."""

LEASE_WAIT_S = 1.0


class Lease:
    """A promise of the past: everything that was committed before `until - LEASE_S` has been applied."""

    __slots__ = ("_news", "is_failing", "server", "until")

    def __init__(self) -> None:
        self.until = float("-inf")
        self.server: datetime | None = None
        """When the database's server was started that renewed it last; it was the primary then."""
        self.is_failing = False
        """Whether nobody should wait for it to be renewed."""
        self._news = asyncio.Event()

    def renew(self, asked_at: float, server: datetime | None, lasts_s: float = LEASE_S) -> None:
        """Take up a lease; `asked_at` was read before the database, or who has a lease from it, was asked."""
        self.until = asked_at + lasts_s
        self.server = server
        self.is_failing = False
        self._news.set()

    def rest_s(self) -> float:
        """For how long the lease is held from now on; 0 or less where it is not."""
        return self.until - clock.now()

    def is_held(self) -> bool:
        """Whether the cache may answer now."""
        return clock.now() < self.until

    async def wait_until_held(self) -> None:
        """Return once it is held. Raises `Unavailable` where that is not to be expected soon.

        Without a lease, the database must not be asked for snapshots either: it may be a former primary.
        """
        if self.is_held():
            return
        try:
            async with asyncio.timeout(LEASE_WAIT_S):
                while not self.is_held() and not self.is_failing:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
        if not self.is_held():
            raise Unavailable("DATABASE_UNAVAILABLE", "the database cannot answer now; try again")

    def fail_waiters(self) -> None:
        """Let nobody wait until it is renewed."""
        self.is_failing = True
        self._news.set()

    def release(self) -> None:
        """Answer nothing from the cache until the lease is renewed."""
        self.until = float("-inf")
