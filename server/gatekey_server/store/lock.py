"""The lock of migrations: one runs at a time, and a waiting one reports what it waits for.

The lock belongs to a transaction that does nothing else. A pooler in between cannot keep it when its client is gone,
as it could keep the lock of a session. Previous releases take a session lock by the same number, and both exclude each
other.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias, TypeVar

import asyncpg

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Tell: TypeAlias = Callable[[str], None]

T = TypeVar("T")

_RETRY_S = 0.1
_LOOK_INTERVAL_S = 0.5

# These override the role's own settings, because a migration may take longer.
_WITHOUT_LIMITS = """
    select set_config(name, '0', true) from pg_settings where name in (
        'statement_timeout', 'lock_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout'
    )
"""
_HOLDER = """
    select pid from pg_locks
    where locktype = 'advisory' and granted and objsubid = 1
        and database = (select oid from pg_database where datname = current_database())
        and (classid::bigint << 32 | objid::bigint) = $1
"""
_SESSIONS = """
    select pid, application_name, usename, coalesce(host(client_addr), 'a local socket') as place,
        backend_start, state, state_change
    from pg_stat_activity where pid = any($1::int[]) order by pid
"""


class LockTimeoutError(Exception):
    """The lock could not be taken in time, or was lost. The text is for the operator."""


class MigrationLock:
    """Holds the lock on one connection, and finds on another one what blocks it."""

    def __init__(self, number: int, runner: Connection, watcher: Connection, tell: Tell) -> None:
        self._number = number
        self._runner = runner
        self._watcher = watcher
        self._tell = tell
        self._blockers = ""

    @asynccontextmanager
    async def held(self, timeout_s: float) -> AsyncIterator[None]:
        """Wait for the lock, and hold it. Raises `LockTimeoutError`."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        told: list[int] = []
        while not await self._attempt():
            holders = [row["pid"] for row in await self._watcher.fetch(_HOLDER, self._number)]
            if asyncio.get_running_loop().time() >= deadline:
                raise LockTimeoutError(await self._timeout_text(timeout_s, holders))
            if holders and holders != told:
                told = holders
                who = await self._described(holders)
                self._tell(f"waiting up to {timeout_s:g} s for another migration to end: {who}")
            await asyncio.sleep(_RETRY_S)
        try:
            yield
        finally:
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await self._runner.execute("rollback")

    async def guard(self, work: Coroutine[Any, Any, T], worker: Connection) -> T:
        """Run the work of a session while the lock is held, and report what it waits for. Raises `LockTimeoutError`."""
        session = await worker.fetchval("select pg_backend_pid()")
        task = asyncio.create_task(work)
        self._runner.add_termination_listener(lambda _: task.cancel())
        watch = asyncio.create_task(self._watch(session))
        try:
            return await task
        except asyncio.CancelledError:
            if self._runner.is_closed():
                raise LockTimeoutError("the connection that holds the lock of migrations broke: run it again") from None
            raise
        except asyncpg.LockNotAvailableError as error:
            whose = f", which this session holds: {self._blockers}" if self._blockers else ""
            raise LockTimeoutError(f"a migration did not get a lock in time{whose}. Run it again") from error
        finally:
            watch.cancel()

    async def _attempt(self) -> bool:
        # Polled: waiting inside a statement would keep an index from being built concurrently.
        await self._runner.execute("begin isolation level read committed")
        await self._runner.execute(_WITHOUT_LIMITS)
        if await self._runner.fetchval("select pg_try_advisory_xact_lock($1)", self._number):
            # This releases the last statement's snapshot, for which such an index would wait as well.
            await self._runner.execute("select")
            return True
        await self._runner.execute("rollback")
        return False

    async def _watch(self, session: int) -> None:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            while True:
                await asyncio.sleep(_LOOK_INTERVAL_S)
                blockers = await self._watcher.fetchval("select pg_blocking_pids($1)", session)
                if blockers and (described := await self._described(blockers)) != self._blockers:
                    self._blockers = described
                    self._tell(f"the migration waits for {described}")

    async def _described(self, pids: list[int]) -> str:
        rows = await self._watcher.fetch(_SESSIONS, pids)
        return "; ".join(_description(row) for row in rows) or "a session that has just ended"

    async def _timeout_text(self, timeout_s: float, holders: list[int]) -> str:
        who = await self._described(holders)
        end = f"select pg_terminate_backend({holders[0]})" if holders else "select pg_terminate_backend(PID)"
        return (
            f"gave up after {timeout_s:g} s of waiting for the lock of migrations, which another session holds: {who}."
            f" Where no migration runs there, it was left behind in a pooler: `{end}` ends it. --lock-timeout or"
            " GATEKEY_MIGRATE_LOCK_TIMEOUT_S waits longer"
        )


def _description(row: asyncpg.Record) -> str:
    state = f", {row['state']} since {row['state_change']:%Y-%m-%d %H:%M:%SZ}" if row["state"] else ""
    since = f", connected since {row['backend_start']:%Y-%m-%d %H:%M:%SZ}" if row["backend_start"] else ""
    name = row["application_name"] or "no application name"
    return f"process {row['pid']} ({name}, role {row['usename']}, from {row['place']}{since}{state})"
