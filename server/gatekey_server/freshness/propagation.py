"""Waiting after a mutation until no process decides from older snapshots."""

import asyncio
from bisect import bisect_left

from gatekey.core import clock
from gatekey.core.changes import Commit
from gatekey.core.errors import Unavailable
from gatekey.core.lease import MAX_REMOTE_LEASE_S

from gatekey_server.freshness.change_poller import ChangePoller
from gatekey_server.store import changes
from gatekey_server.store.database import Database

_FIRST_DELAY_S = 0.001
_MAX_DELAY_S = 0.05

WAIT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""The upper bounds of the histogram of waits, in seconds."""


class PropagationBarrier:
    """Waits until all processes have applied a revision, or until their older leases have expired."""

    def __init__(self, database: Database, poller: ChangePoller) -> None:
        self._database = database
        self._poller = poller
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._watcher: asyncio.Task[None] | None = None
        self.bucket_counts = [0] * (len(WAIT_BUCKETS_S) + 1)
        """The number of waits in each bucket of `WAIT_BUCKETS_S`, and above the last."""
        self.seconds = 0.0
        """The sum of all waits."""

    async def wait(self, commit: Commit, *, everywhere: bool = False) -> float:
        """Return once no process decides from snapshots older than a commit; returns the wait in seconds.

        Call it after the commit has returned. It takes `MAX_REMOTE_LEASE_S` at most. With `everywhere` it takes exactly
        that, after which no client cache decides from older snapshots either. So it does after a fork of the history:
        processes of the former history may not be registered in this one.
        """
        started_at = clock.now()
        self._poller.wake()
        try:
            async with asyncio.timeout(MAX_REMOTE_LEASE_S):
                await self._poller.wait_until_applied(commit.position)
                await self._wait_for_others(commit.position.revision)
        except TimeoutError:
            # A process that has not applied it can only hold a lease from before the commit, which has expired.
            pass
        # Clients are not registered, but no client's lease outlasts that of the process that it comes from.
        if everywhere or commit.is_after_fork:
            await asyncio.sleep(started_at + MAX_REMOTE_LEASE_S - clock.now())
        waited = clock.now() - started_at
        self.bucket_counts[bisect_left(WAIT_BUCKETS_S, waited)] += 1
        self.seconds += waited
        return waited

    async def _wait_for_others(self, revision: int) -> None:
        applied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[applied] = revision
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())
        try:
            await applied
        finally:
            del self._waiting[applied]

    async def _watch(self) -> None:
        delay = _FIRST_DELAY_S
        while self._waiting:
            # This read counts only for those who wait already. A process that registers later
            # holds no lease from before their commits.
            asked = tuple(self._waiting.items())
            try:
                found = await changes.processes(self._database)
            except Unavailable:
                found = None
            # The server that this process polls has everybody's acknowledgements; a former primary does not.
            if found and all(process.server == self._poller.server for process in found):
                others = [process.applied_revision for process in found if process.uid != self._poller.process]
                for applied, revision in asked:
                    if not applied.done() and all(other >= revision for other in others):
                        applied.set_result(None)
                        delay = _FIRST_DELAY_S
            await asyncio.sleep(delay)
            delay = min(delay * 1.5, _MAX_DELAY_S)
