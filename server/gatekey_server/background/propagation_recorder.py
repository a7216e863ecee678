"""The end of a mutation: waiting until it is visible everywhere, and recording how long that took."""

import asyncio
from datetime import timedelta

import structlog
from gatekey.core.audit import AuditPosition
from gatekey.core.changes import Commit
from gatekey.core.errors import DomainError

from gatekey_server.freshness.propagation import PropagationBarrier
from gatekey_server.store import audit
from gatekey_server.store.database import Connection, Database

_FLUSH_INTERVAL_S = 1.0
_MAX_PENDING = 100_000

_log = structlog.get_logger()


class PropagationRecorder:
    """Waits for propagation and adds the waits to the audit log, later and in batches.

    A process that is killed loses the waits of the last second.
    """

    def __init__(self, database: Database, barrier: PropagationBarrier) -> None:
        self._database = database
        self._barrier = barrier
        self._pending: dict[AuditPosition, timedelta] = {}

    async def wait_until_visible(self, commit: Commit, event: AuditPosition | None, *, everywhere: bool) -> timedelta:
        """Return once no process decides from snapshots older than the commit.

        With `everywhere`, no client cache does either.
        """
        waited = timedelta(seconds=await self._barrier.wait(commit, everywhere=everywhere))
        if event is not None and len(self._pending) < _MAX_PENDING:
            self._pending[event] = waited
        return waited

    async def run(self) -> None:
        """Write waits until cancelled."""
        while True:
            await asyncio.sleep(_FLUSH_INTERVAL_S)
            await self.flush()

    async def flush(self) -> None:
        """Write the pending waits. Those that cannot be written now are kept for the next time."""
        waits, self._pending = self._pending, {}
        if not waits:
            return

        async def write(connection: Connection) -> None:
            await audit.add_receipts(connection, waits)

        try:
            await self._database.transaction(write)
        except DomainError as error:
            _log.warning("propagation.write_postponed", waits=len(waits), reason=error.reason)
            self._pending = waits | self._pending
