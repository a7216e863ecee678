"""When keys were last used: kept in memory, written down in batches, the first use of a key at once.

A process that dies loses the uses of the last `interval_s` seconds at most, but never a first one
that was more than a moment ago. Writing neither touches the key's row nor waits for a check.
"""

import asyncio
import uuid
from datetime import datetime

import structlog
from gatekey.core import clock
from gatekey.core.decisions import KeySnapshot
from gatekey.core.errors import GatekeyError

from gatekey_server.store import api_keys
from gatekey_server.store.database import Database

MAX_PENDING = 100_000
_BATCH = 50
_MAX_REST_S = 0.1

_log = structlog.get_logger()


class UsageRecorder:
    """Remembers uses until they are written. Beyond `MAX_PENDING` keys, further ones are dropped and counted."""

    def __init__(self, database: Database, interval_s: float) -> None:
        self._database = database
        self._interval_s = interval_s
        self._pending: dict[tuple[int, uuid.UUID], datetime] = {}
        self._first_uses: set[tuple[int, uuid.UUID]] = set()
        self._wake = asyncio.Event()
        self._dropped = 0

    def record(self, snapshot: KeySnapshot, now: datetime) -> None:
        """Remember that a key was used."""
        self.record_key(snapshot.uid, now)
        if not snapshot.was_used and snapshot.uid not in self._first_uses:
            # The snapshot may be told for a long time what it was told at first.
            if len(self._first_uses) >= MAX_PENDING:
                self._first_uses.clear()
            self._first_uses.add(snapshot.uid)
            self._wake.set()

    def record_key(self, uid: tuple[int, uuid.UUID], time: datetime) -> None:
        """Remember that a key was used, by the uids of tenant and key, and not for the first time."""
        if uid not in self._pending and len(self._pending) >= MAX_PENDING:
            self._dropped += 1
        else:
            self._pending[uid] = max(time, self._pending.get(uid, time))

    async def run(self) -> None:
        """Write down uses until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            await self.flush(gently=True)

    async def flush(self, *, gently: bool = False) -> None:
        """Write down what is remembered, first uses first; what cannot be written now is kept for the next time.

        `gently` leaves as much time to others after each batch as it took, and ends early where a key was used for
        the first time meanwhile: `run` begins anew then.
        """
        pending = sorted(self._pending.items(), key=lambda use: use[0] not in self._first_uses)
        for start in range(0, len(pending), _BATCH):
            batch, begun_at = dict(pending[start : start + _BATCH]), clock.now()
            try:
                await self._write(batch)
            except GatekeyError as error:
                _log.warning("usage.kept_back", keys=len(self._pending), reason=error.reason)
                return
            for uid, time in batch.items():
                if self._pending.get(uid) == time:
                    del self._pending[uid]
            if gently:
                # A process that was stopped meanwhile need not rest for as long.
                await asyncio.sleep(min(clock.now() - begun_at, _MAX_REST_S))
                if self._wake.is_set():
                    return
        if self._dropped:
            _log.warning("usage.dropped", uses=self._dropped)
            self._dropped = 0

    async def _write(self, batch: dict[tuple[int, uuid.UUID], datetime]) -> None:
        """Write down some uses; those that cannot be written for a reason of their own are dropped."""
        try:
            await api_keys.record_uses(self._database, batch)
        except GatekeyError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is
            if len(batch) > 1:
                for uid, time in batch.items():
                    await self._write({uid: time})
                return
            ((_, key_uid),) = batch
            _log.exception("usage.not_written", key_uid=str(key_uid), error=type(error).__name__)
