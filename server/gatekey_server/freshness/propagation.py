"""When a mutation is over: once nobody can answer from what was before it."""

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
"""The upper bounds of the histogram of waits."""


class PropagationBarrier:
    """Waits until all processes have applied a revision, or for as long as their leases can last."""

    def __init__(self, database: Database, poller: ChangePoller) -> None:
        self._database = database
        self._poller = poller
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._watcher: asyncio.Task[None] | None = None
        self.bucket_counts = [0] * (len(WAIT_BUCKETS_S) + 1)
        """How many waits ended within each of `WAIT_BUCKETS_S` and not the one before, and how many after the last."""
        self.seconds = 0.0
        """How long all waits took together."""

    async def wait(self, commit: Commit, *, everywhere: bool = False) -> float:
        """Return once no process can answer from snapshots older than a commit; answers after how long.

        The commit must have returned before this is called. Takes a lease and a little at the longest;
        and always, with `everywhere`: then no client with a cache of its own can either. It always does after a
        fork as well: the processes of the former history may not be known in this one.
        """
        started_at = clock.now()
        self._poller.wake()
        try:
            async with asyncio.timeout(MAX_REMOTE_LEASE_S):
                await self._poller.wait_until_applied(commit.position)
                await self._wait_for_others(commit.position.revision)
        except TimeoutError:
            # Whoever has not applied it holds no lease but one from before the commit, and that is over.
            pass
        # Nobody knows all clients, but no lease of theirs lasts longer than the one of a process that it comes from.
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
            # Only who waits already may be told what is read from now on: a process that registers later
            # holds no lease from before their commits.
            asked = tuple(self._waiting.items())
            try:
                found = await changes.processes(self._database)
            except Unavailable:
                found = None
            # Only the server that has this process's own acknowledgements has everybody's; a former primary has not.
            if found and all(process.server == self._poller.server for process in found):
                others = [process.applied_revision for process in found if process.uid != self._poller.process]
                for applied, revision in asked:
                    if not applied.done() and all(other >= revision for other in others):
                        applied.set_result(None)
                        delay = _FIRST_DELAY_S
            await asyncio.sleep(delay)
            delay = min(delay * 1.5, _MAX_DELAY_S)
