"""The lease of a process that follows a database, and waiting for it."""

import asyncio
from datetime import datetime

from gatekey.core.lease import Lease

from gatekey_server.store.database import unavailable

LEASE_WAIT_S = 1.0


class PrimaryLease(Lease):
    """A lease that one of the database's servers renews."""

    __slots__ = ("_news", "is_failing", "server")

    def __init__(self) -> None:
        super().__init__()
        self.server: datetime | None = None
        """The start time of the database server that last renewed it, which was the primary then."""
        self.is_failing = False
        """Whether waiting for a renewal is pointless, because polls fail."""
        self._news = asyncio.Event()

    def renew(self, asked_at: float, server: datetime | None) -> None:
        """Start a new lease from a server. `asked_at` is the clock before the poll was sent."""
        self.extend(asked_at)
        self.server = server
        self.is_failing = False
        self._news.set()

    async def wait_until_held(self) -> None:
        """Return once it is held. Raises `Unavailable` after `LEASE_WAIT_S`, or at once while polls fail.

        Without a lease, snapshots must not come from the database either: it may be a former primary.
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
            raise unavailable()

    def fail_waiters(self) -> None:
        """Fail all waits for a renewal, now and until there is one."""
        self.is_failing = True
        self._news.set()
