"""When keys were last used: kept in memory and written in batches, the first use of a key at once.

A process that is killed loses the uses of the last `interval_s` seconds at most, and a first use only within
a moment. Writing neither touches the key's row nor makes a check wait.
"""

import asyncio
import uuid
from datetime import datetime

import structlog
from gatekey.core import clock
from gatekey.core.decisions import KeySnapshot
from gatekey.core.errors import DomainError

from gatekey_server.store import api_keys
from gatekey_server.store.database import Database

MAX_PENDING = 100_000
_BATCH = 50
_MAX_REST_S = 0.1

_log = structlog.get_logger()


class UsageRecorder:
    """Holds uses until they are written. Beyond `MAX_PENDING` keys, more uses are dropped and counted."""

    def __init__(self, database: Database, interval_s: float) -> None:
        self._database = database
        self._interval_s = interval_s
        self._pending: dict[tuple[int, uuid.UUID], datetime] = {}
        self._first_uses: set[tuple[int, uuid.UUID]] = set()
        self._wake = asyncio.Event()
        self._dropped = 0

    def record(self, snapshot: KeySnapshot, now: datetime) -> None:
        """Record that a key was used."""
        self.record_key(snapshot.uid, now)
        if not snapshot.was_used and snapshot.uid not in self._first_uses:
            # A cached snapshot may say `was_used=False` long after the first use.
            if len(self._first_uses) >= MAX_PENDING:
                self._first_uses.clear()
            self._first_uses.add(snapshot.uid)
            self._wake.set()

    def record_key(self, uid: tuple[int, uuid.UUID], time: datetime) -> None:
        """Record that a key was used, by the uids of tenant and key, and not for the first time."""
        if uid not in self._pending and len(self._pending) >= MAX_PENDING:
            self._dropped += 1
        else:
            self._pending[uid] = max(time, self._pending.get(uid, time))

    async def run(self) -> None:
        """Write uses until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            await self.flush(gently=True)

    async def flush(self, *, gently: bool = False) -> None:
        """Write the pending uses, first uses first. Those that cannot be written now are kept for the next time.

        `gently` sleeps after each batch for as long as it took, and ends early where a key is used for the first
        time meanwhile: `run` then starts again.
        """
        pending = sorted(self._pending.items(), key=lambda use: use[0] not in self._first_uses)
        for start in range(0, len(pending), _BATCH):
            batch, begun_at = dict(pending[start : start + _BATCH]), clock.now()
            try:
                await self._write(batch)
            except DomainError as error:
                _log.warning("usage.write_postponed", keys=len(self._pending), reason=error.reason)
                return
            for uid, time in batch.items():
                if self._pending.get(uid) == time:
                    del self._pending[uid]
            if gently:
                # After a pause of the whole process, the time that a batch took says nothing: do not sleep for as long.
                await asyncio.sleep(min(clock.now() - begun_at, _MAX_REST_S))
                if self._wake.is_set():
                    return
        if self._dropped:
            _log.warning("usage.dropped", uses=self._dropped)
            self._dropped = 0

    async def _write(self, batch: dict[tuple[int, uuid.UUID], datetime]) -> None:
        """Write some uses. Those that the database refuses are dropped."""
        try:
            await api_keys.record_uses(self._database, batch)
        except DomainError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is
            if len(batch) > 1:
                for uid, time in batch.items():
                    await self._write({uid: time})
                return
            ((_, key_uid),) = batch
            _log.exception("usage.not_written", key_uid=str(key_uid), error=type(error).__name__)
