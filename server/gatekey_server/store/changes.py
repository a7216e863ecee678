"""The database's changes, and the processes that have applied them."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg
from gatekey.core.changes import Commit, Poll, Position, ScopeChange
from gatekey.core.secrets import Digest

from gatekey_server.store.database import SESSION, Connection, Database, translated_errors, unavailable
from gatekey_server.store.queries import queries

MAX_CHANGES = 10_000
"""How many changes a process applies one by one. A process that is further behind starts anew."""

KEPT_REVISIONS = 10_000
"""How many revisions are kept for processes that are behind."""

FORK_WAIT_S = 5.0
"""For this long after a fork, mutations wait for a whole lease. Leases from before the fork end earlier."""

_CHANNEL = "gatekey_change"
_PURGE_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Process:
    """A process that may decide from its cache."""

    uid: uuid.UUID
    applied_revision: int
    last_poll: uuid.UUID
    """A new value for every poll."""
    server: datetime
    """The start time of the database server that reported it."""


class ChangeConnection:
    """A separate connection to the primary, on which a process receives changes."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]", process: uuid.UUID) -> None:
        self._connection = connection
        self._process = process
        self._woken = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(cls, database: Database, process: uuid.UUID, timeout_s: float) -> AsyncIterator["ChangeConnection"]:
        """Connect and listen. No statement may take longer than `timeout_s`. Raises `Unavailable`."""
        with translated_errors():
            connection = await database.primary.connect(
                timeout=timeout_s,
                command_timeout=timeout_s,
                server_settings={**SESSION, "application_name": "gatekey-changes"},
            )
            link = cls(connection, process)
            try:
                connection.add_termination_listener(link.wake)
                await connection.add_listener(_CHANNEL, link.wake)
                yield link
            finally:
                # Not `close`, which would wait for a peer that is gone.
                connection.terminate()

    async def register(self, applied: Position) -> None:
        """Register the process, so that mutations wait for it."""
        with translated_errors():
            await queries.process_register(
                self._connection, process_uid=self._process, applied=applied.revision, stamp=applied.stamp
            )

    async def poll(self, applied: Position) -> Poll:
        """Acknowledge the applied position, and return what has changed since."""
        self._woken.clear()
        with translated_errors():
            rows = queries.changes_poll(
                self._connection,
                process_uid=self._process,
                applied=applied.revision,
                stamp=applied.stamp,
                limit=MAX_CHANGES + 1,
            )
            found = [row async for row in rows]
        return _to_poll(found)

    async def processes(self) -> list[Process]:
        """Return all processes that may decide from their caches."""
        with translated_errors():
            return await _processes(self._connection)

    async def remove(self, process: Process) -> None:
        """Remove a process whose lease has expired, unless it has polled since it was read."""
        with translated_errors():
            await queries.process_remove(self._connection, process_uid=process.uid, last_poll=process.last_poll)

    async def wait(self, timeout_s: float) -> None:
        """Return at a notification, the end of the connection, or the timeout, whichever is first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        except TimeoutError:
            return

    def wake(self, *_: Any) -> None:
        """End a wait."""
        self._woken.set()


async def unregister(database: Database, process: uuid.UUID) -> None:
    """Unregister a process that decides nothing from its cache any more, so that mutations do not wait for it."""
    async with database.connection() as connection:
        await queries.process_unregister(connection, process_uid=process)


async def processes(database: Database) -> list[Process]:
    """Return all processes that may decide from their caches."""
    async with database.connection() as connection:
        return await _processes(connection)


async def take_position(connection: Connection) -> Commit:
    """Return the position of this transaction's changes; the last position where it has made none.

    Call it near the end of a transaction: all other changes wait until the transaction ends.
    """
    row = await queries.position_take(connection, patience=timedelta(seconds=FORK_WAIT_S))
    return Commit(Position(row["reached"], row["its_stamp"]), row["is_after_fork"])


async def current_position(database: Database) -> Commit:
    """Return the position of the last committed change."""
    return await database.transaction(take_position)


async def purge(database: Database) -> int:
    """Purge the changes that no process needs any more. Returns how many."""
    count = 0
    while True:
        async with database.connection() as connection:
            purged = int(await queries.changes_purge(connection, keep=KEPT_REVISIONS, limit=_PURGE_BATCH))
        count += purged
        if purged < _PURGE_BATCH:
            return count


async def _processes(connection: Any) -> list[Process]:
    return [
        Process(row["process_uid"], row["applied_revision"], row["last_poll"], row["server"])
        async for row in queries.process_list(connection)
    ]


def _to_poll(rows: Sequence[asyncpg.Record]) -> Poll:
    if not rows:
        # See `snapshots.load`.
        raise unavailable()
    first = rows[0]
    changes = None
    if first["continuous"] and len(rows) <= MAX_CHANGES:
        changes = [
            ScopeChange(
                row["change_revision"],
                row["product_id"],
                row["tenant_uid"],
                row["principal_uid"],
                row["key_uid"],
                Digest(row["digest"]) if row["digest"] else None,
                row["change_stamp"],
                row["tenant_product"],
            )
            for row in rows
            if row["change_revision"] is not None
        ]
    head = Position(first["current"], first["stamp"])
    return Poll(head, first["registered"], changes, first["server"], first["scope_key"])
