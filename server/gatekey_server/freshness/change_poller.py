"""The poller that applies the database's changes and renews the lease of this process."""

import asyncio
import random
import uuid
from datetime import datetime

import structlog
from gatekey.core import clock
from gatekey.core.changes import Position
from gatekey.core.errors import Unavailable
from gatekey.core.invalidation_index import InvalidationIndex
from gatekey.core.lease import LEASE_S, MAX_REMOTE_LEASE_S

from gatekey_server.freshness.change_log import ChangeLog
from gatekey_server.freshness.lease import PrimaryLease
from gatekey_server.store import changes
from gatekey_server.store.changes import ChangeConnection, Process
from gatekey_server.store.database import Database

POLL_INTERVAL_S = LEASE_S / 4
POLL_TIMEOUT_S = LEASE_S / 2
_FIRST_BACKOFF_S = 0.05
_MAX_BACKOFF_S = 1.0

_log = structlog.get_logger()


class ChangePoller:
    """Polls the database for changes, applies them, and renews the lease.

    A notification makes it poll at once; without any, it polls every `POLL_INTERVAL_S`.
    """

    def __init__(self, database: Database, index: InvalidationIndex, log: ChangeLog, lease: PrimaryLease) -> None:
        self._database = database
        self._index = index
        self._log = log
        self._lease = lease
        self._link: ChangeConnection | None = None
        self._applied = asyncio.Condition()
        self._others: dict[uuid.UUID, tuple[Process, float]] = {}
        self.process = uuid.uuid4()
        """The id by which mutations know this process."""
        self.polled_at = float("-inf")
        """When the newest successful poll was sent, by `clock`."""
        self.connections = 0
        """How many connections were made."""

    async def run(self) -> None:
        """Follow the database until cancelled. Failures are retried forever."""
        backoff = _FIRST_BACKOFF_S
        while True:
            began_at = clock.now()
            try:
                async with ChangeConnection.open(self._database, self.process, POLL_TIMEOUT_S) as link:
                    self._link, self.connections = link, self.connections + 1
                    await self._follow(link)
            except Unavailable as error:
                if self.polled_at >= began_at:
                    backoff = _FIRST_BACKOFF_S
                else:
                    self._lease.fail_waiters()
                    backoff = min(backoff * 2, _MAX_BACKOFF_S)
                # A host that accepts connections and commits nothing may be a former primary.
                self._database.primary.demote_current_host()
                _log.warning("change_poller.interrupted", reason=error.reason, cause=repr(error.__cause__))
            finally:
                self._link = None
            # Random, so that processes do not all reconnect at once when the database is back.
            await asyncio.sleep(backoff * random.uniform(0.5, 1))  # noqa: S311

    @property
    def server(self) -> datetime | None:
        """The start time of the database server that this process polls."""
        return self._lease.server

    async def leave(self) -> None:
        """Unregister, so that mutations no longer wait for this process. Its cache serves nothing afterwards."""
        self._lease.release()
        await changes.unregister(self._database, self.process)

    def wake(self) -> None:
        """Poll now."""
        if self._link is not None:
            self._link.wake()

    async def wait_until_applied(self, position: Position) -> None:
        """Return once this process decides from no snapshot older than a position.

        A higher revision is not enough: it may be of another history, as after a restore.
        """
        async with self._applied:
            await self._applied.wait_for(lambda: self._index.includes(position))

    async def _follow(self, link: ChangeConnection) -> None:
        registered_at = None
        looked_around_at = clock.now()
        while True:
            asked_at = clock.now()
            poll = await link.poll(self._index.applied)
            if not poll.registered:
                # Mutations do not wait for this process: it is new, or another process took it for dead.
                if registered_at is not None:
                    _log.warning("change_poller.registration_expired", process=str(self.process))
                registered_at = asked_at
                self._lease.release()
                await link.register(self._index.applied)
                continue
            is_elsewhere = poll.server != self._lease.server
            if is_elsewhere or not self._lease.is_held():
                self._index.on_lease_gap()
            before = self._index.applied
            is_continuous = self._index.apply(poll)
            self._log.add(poll, is_continuous=is_continuous)
            if not is_continuous:
                _log.info("change_poller.started_anew", revision=poll.head.revision, before=before.revision)
            if is_elsewhere or not is_continuous:
                await self._database.expire_connections()
            self._lease.renew(asked_at, poll.server)
            self.polled_at = asked_at
            async with self._applied:
                self._applied.notify_all()
            if poll.head != before:
                # The next poll acknowledges this one, and mutations wait for that.
                continue
            if asked_at - looked_around_at > LEASE_S:
                looked_around_at = asked_at
                await self._remove_the_dead(link)
            await link.wait(POLL_INTERVAL_S)

    async def _remove_the_dead(self, link: ChangeConnection) -> None:
        """Remove processes whose leases have expired, so that mutations no longer wait for them.

        Expiry is measured by this process's clock alone: no poll for longer than a lease lasts.
        """
        found = await link.processes()
        seen_at = clock.now()
        others = {}
        for process in found:
            before, since = self._others.get(process.uid, (process, seen_at))
            if before.last_poll != process.last_poll:
                since = seen_at
            elif seen_at - since > MAX_REMOTE_LEASE_S and process.uid != self.process:
                await link.remove(process)
                _log.warning("change_poller.removed_dead_process", process=str(process.uid))
                continue
            others[process.uid] = (process, since)
        self._others = others
