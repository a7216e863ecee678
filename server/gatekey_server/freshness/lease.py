"""The lease of a process that follows a database, and those who wait for it."""

import asyncio
from datetime import datetime

from gatekey.core.errors import Unavailable
from gatekey.core.lease import Lease

LEASE_WAIT_S = 1.0


class PrimaryLease(Lease):
    """A lease that one of the database's servers renews."""

    __slots__ = ("_news", "is_failing", "server")

    def __init__(self) -> None:
        super().__init__()
        self.server: datetime | None = None
        """When the database's server was started that renewed it last; it was the primary then."""
        self.is_failing = False
        """Whether nobody should wait for it to be renewed."""
        self._news = asyncio.Event()

    def renew(self, asked_at: float, server: datetime | None) -> None:
        """Take up a lease from a server; `asked_at` was read before it was asked."""
        self.extend(asked_at)
        self.server = server
        self.is_failing = False
        self._news.set()

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
