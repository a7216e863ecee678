"""Connections and transactions, and the translation of the driver's errors."""

import asyncio
import enum
import os
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Self, TypeAlias, TypeVar

import asyncpg
from gatekey.core import times
from gatekey.core.errors import Overloaded, Unavailable

from gatekey_server.store import dsn
from gatekey_server.store.failures import Meaning, meaning_of
from gatekey_server.store.turns import Scope, Turns

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
T = TypeVar("T")

TRANSACTION_ATTEMPTS = 5

IDLE_IN_TRANSACTION_S = 1.0
LOCK_TIMEOUT_S = 2.0
MAX_WAITING = 1000
"""How many requests may wait for a connection of one share."""

_MAX_LOADS = 4
_CLOSE_S = 2.0
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
"""PostgreSQL's epoch."""
_MICROSECOND = timedelta(microseconds=1)

# Plans from when a table was nearly empty may use any index. They must be made again soon.
_MAX_PLAN_AGE_S = 10

# Any error of a connection attempt means: not this host.
_NOT_THIS_HOST = (
    *(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError),
    # A host name that cannot be encoded for a name server.
    UnicodeError,
)

Host: TypeAlias = tuple[str | None, int | None]
"""A host and its port. None stands for the driver's default."""

SESSION: Mapping[str, str] = {
    "timezone": "UTC",
    # Plan once per connection: planning takes longer than most queries, and the server would plan again for every list
    # of digests.
    "plan_cache_mode": "force_generic_plan",
    # Plans cached on empty tables must not use sequential scans after the tables grow. They stay in use until
    # statistics are gathered, which may be thousands of rows later.
    "enable_seqscan": "off",
    # For the same reason tables are joined in the order of the query, each row by an index. A plan must not start at
    # the products and read all keys of all tenants, or join by reading whole tables.
    "join_collapse_limit": "1",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    # With sequential scans off, plans that need one look expensive enough to be compiled.
    "jit": "off",
}
"""The settings of a server's sessions."""


class ConnectError(ConnectionError):
    """No host can be used. The text has the reason for each."""


class Primary:
    """Connects to the host of a URL that takes writes. A hot standby is never used.

    Raises `dsn.DsnError` for a URL that cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.dsn = url
        self._url = dsn.parse(url)
        self._hosts = deque(self._url.hosts)

    async def connect(
        self,
        *_: object,
        timeout: float,  # noqa: ASYNC109 - the driver's word
        server_settings: Mapping[str, str],
        **options: Any,
    ) -> "asyncpg.Connection[asyncpg.Record]":
        """Connect to the first usable host, starting with the last one that worked.

        Each gets an equal share of the time: the driver would spend it all on a host that does not respond. Raises
        `ConnectError`.
        """
        share = min(timeout / len(self._hosts), self._url.connect_timeout_s or timeout)
        problems = []
        for host in tuple(self._hosts):
            try:
                async with asyncio.timeout(share):
                    return await self._connect_to(host, server_settings, options)
            except _NOT_THIS_HOST as error:
                problems.append((host, error))
                self._avoid(host)
        told = "; ".join(f"{_shown(host)}{why_not(error, share)}" for host, error in problems)
        raise ConnectError(told) from problems[-1][1]

    async def _connect_to(
        self, host: "Host", settings: Mapping[str, str], options: Mapping[str, Any]
    ) -> "asyncpg.Connection[asyncpg.Record]":
        session = self._url.session(settings.get("application_name", "gatekey"))
        connection = await asyncpg.connect(
            **self._url.arguments(*host),
            timeout=None,
            target_session_attrs="read-write",
            server_settings=session,
            max_cached_statement_lifetime=_MAX_PLAN_AGE_S,
            **options,
        )
        try:
            await connection.set_type_codec(
                "timestamptz", schema="pg_catalog", format="tuple", encoder=_write_time, decoder=read_time
            )
            # Not in the startup message: poolers refuse or drop settings there that they do not know.
            if statements := _set(settings):
                await connection.execute(statements)
        except BaseException:
            connection.terminate()
            raise
        return connection

    def demote_current_host(self) -> None:
        """Start with another host next time: this one accepts connections, but may no longer be the primary."""
        self._avoid(self._hosts[0])

    def _avoid(self, host: "Host") -> None:
        # Of several callers that fail at the same time, only the first rotates the list.
        if self._hosts[0] == host:
            self._hosts.rotate(-1)


def _write_time(time: datetime) -> tuple[int]:
    return ((time - _EPOCH) // _MICROSECOND,)


def read_time(microseconds: tuple[int]) -> datetime:
    """Return a time from PostgreSQL's format. One outside of Python's range becomes the nearest that requests may name.

    The driver would return infinity without a time zone, and would fail the whole statement for others.
    """
    try:
        return _EPOCH + timedelta(microseconds=microseconds[0])
    except OverflowError:
        return times.MAX_TIME if microseconds[0] > 0 else times.MIN_TIME


def why_not(error: BaseException, waited_s: float | None = None) -> str:
    """Return the reason why a database cannot be used, in one line for the operator."""
    match error:
        case TimeoutError():
            return "no response in time" if waited_s is None else f"no response within {waited_s:g} s"
        case asyncpg.TargetServerAttributeNotMatched():
            return "it takes no writes: a standby, or read-only"
        case asyncpg.InvalidSQLStatementNameError() | asyncpg.DuplicatePreparedStatementError():
            return "a pooler shares sessions"
        case UnicodeError():
            return "not a name that can be looked up"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {error.verify_message}"
        case PermissionError(filename=str(name)) if ".postgresql" in name:
            return f"this user may not look for {name}: HOME leads to the home of another user"
        case OSError(errno=int(number)) if number > 0 and not isinstance(error, ssl.SSLError):
            return os.strerror(number) + (f": {error.filename}" if error.filename else "")
        case OSError(strerror=str(text)):
            return text
    return " ".join(str(error).split()) or type(error).__name__


def _shown(host: "Host") -> str:
    name, port = host
    where = f"[{name}]" if name and ":" in name else name
    return f"{':'.join(str(part) for part in (where, port) if part)}: " if name else ""


def _set(settings: Mapping[str, str]) -> str:
    return "; ".join(f"set {name} = '{value}'" for name, value in settings.items() if name != "application_name")


class Share(enum.Enum):
    """A kind of work with its own connections, so that one kind never waits for another."""

    LOADS = enum.auto()
    """Checks of keys that are not in memory."""
    MUTATIONS = enum.auto()
    READS = enum.auto()
    """Gets and lists."""
    CONTROL = enum.auto()
    """Propagation and health."""
    BACKGROUND = enum.auto()
    """Maintenance, and deferred writes."""


def share_sizes(connections: int) -> dict[frozenset[Share], int]:
    """Return how many of a pool's connections each kind of work has. With fewer than five, some kinds share theirs."""
    slow, quick = {Share.MUTATIONS, Share.READS}, {Share.CONTROL, Share.BACKGROUND}
    if connections == 2:
        groups: list[set[Share]] = [quick | {Share.LOADS}, slow]
    elif connections == 3:
        groups = [{Share.LOADS}, quick, slow]
    elif connections == 4:
        groups = [{Share.LOADS}, quick, {Share.MUTATIONS}, {Share.READS}]
    else:
        groups = [{share} for share in Share]
    sizes = {frozenset(group): 1 for group in groups}
    rest = connections - len(sizes)
    if len(sizes) == len(Share):
        loads, reads = min(_MAX_LOADS - 1, rest * 3 // 11), rest // 4
        sizes[frozenset({Share.LOADS})] += loads
        sizes[frozenset({Share.READS})] += reads
        sizes[frozenset({Share.MUTATIONS})] += rest - loads - reads
    return sizes


class _Places:
    """A number of a pool's connections, and the queue for them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = asyncio.Semaphore(size)
        self._waiting = 0

    @asynccontextmanager
    async def take(self, timeout_s: float) -> AsyncIterator[None]:
        if self._waiting >= MAX_WAITING:
            raise Overloaded("OVERLOADED", "too many requests wait for the database")
        self._waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()


class Database:
    """One share of a bounded pool of connections to PostgreSQL.

    Every method raises `Unavailable` (`DATABASE_UNAVAILABLE`) where the database does not respond in time, and
    `Overloaded` (`OVERLOADED`) where too many requests wait for it.
    """

    def __init__(
        self,
        primary: "Primary",
        pool: "asyncpg.Pool[asyncpg.Record]",
        acquire_timeout_s: float,
        places: Mapping[Share, _Places],
        turns: Turns,
        share: Share = Share.READS,
    ) -> None:
        self.primary = primary
        self._pool = pool
        self._acquire_timeout_s = acquire_timeout_s
        self._places = places
        self._turns = turns
        self._share = share

    def share(self, share: Share) -> Self:
        """Return another share of the same pool."""
        return type(self)(self.primary, self._pool, self._acquire_timeout_s, self._places, self._turns, share)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, dsn: str, *, max_connections: int, statement_timeout_s: float, acquire_timeout_s: float
    ) -> AsyncIterator[Self]:
        """Open a pool, and close it at the end."""
        with translated_errors():
            primary = Primary(dsn)
            pool = asyncpg.create_pool(
                connect=primary.connect,
                reset=_leave_as_it_is,
                # Connections are made on demand and kept. A pool with a minimum size would retry, and log, all the
                # time while the database is away.
                min_size=0,
                max_inactive_connection_lifetime=0,
                max_size=max_connections,
                # The server's own limit is shorter, so that it responds before the client gives up.
                command_timeout=statement_timeout_s + 1,
                timeout=acquire_timeout_s,
                server_settings={
                    **SESSION,
                    "application_name": "gatekey",
                    "statement_timeout": f"{statement_timeout_s * 1000:.0f}",
                    # A request that waits for another process's lock occupies one of few connections.
                    "lock_timeout": f"{min(statement_timeout_s, LOCK_TIMEOUT_S) * 1000:.0f}",
                    # A process that is stopped within a transaction must not block the others for long.
                    "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_S * 1000:.0f}",
                },
            )
            await pool
            await pool.fetchval("select 1")
        try:
            places = {
                share: group
                for shares, size in share_sizes(max_connections).items()
                for group in [_Places(size)]
                for share in shares
            }
            yield cls(primary, pool, acquire_timeout_s, places, Turns(places[Share.MUTATIONS].size))
        finally:
            closing = asyncio.create_task(pool.close())
            await asyncio.wait([closing], timeout=min(statement_timeout_s, _CLOSE_S))
            pool.terminate()
            await asyncio.gather(closing, return_exceptions=True)

    async def transaction(self, work: Callable[[Connection], Awaitable[T]], *, scope: Scope | None = None) -> T:
        """Run `work` in one transaction, with retries on conflict.

        `work` must have no effects except on its connection. With `scope`, it locks that tenant or product, and waits
        for its turn among the mutations before it takes one of their connections.
        """
        share = self._share if scope is None else Share.MUTATIONS

        async def attempt() -> T:
            async with self._borrow(share) as connection, connection.transaction():
                return await work(connection)

        if scope is None:
            return await _with_retries(attempt)
        async with self._turns.take(scope):
            return await _with_retries(attempt)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Borrow a connection, for statements outside of a transaction."""
        with translated_errors():
            async with self._borrow(self._share) as connection:
                yield connection

    async def fetch(self, sql: str, *arguments: object) -> Sequence[asyncpg.Record]:
        """Run one query outside of a transaction, with retries on conflict."""

        async def attempt() -> Sequence[asyncpg.Record]:
            async with self._borrow(self._share) as connection:
                rows: Sequence[asyncpg.Record] = await connection.fetch(sql, *arguments)
                return rows

        return await _with_retries(attempt)

    def terminate(self) -> None:
        """Close all connections at once. Whatever waits for the database fails."""
        self._pool.terminate()

    async def expire_connections(self) -> None:
        """Replace all connections: the old ones may lead to a former primary."""
        await self._pool.expire_connections()

    @asynccontextmanager
    async def _borrow(self, share: Share) -> AsyncIterator[Connection]:
        async with (
            self._places[share].take(self._acquire_timeout_s),
            self._pool.acquire(timeout=self._acquire_timeout_s) as connection,
        ):
            yield connection


async def _leave_as_it_is(_: object) -> None:
    """Skip the reset of a session. No settings, locks or cursors outlive their transaction here.

    The driver would send a reset after each use, which is a round trip for every query.
    """


async def _with_retries(attempt: Callable[[], Awaitable[T]]) -> T:
    for _ in range(TRANSACTION_ATTEMPTS - 1):
        try:
            return await attempt()
        except Exception as error:
            if meaning_of(error) is Meaning.AGAIN:
                continue
            with translated_errors():
                raise
    with translated_errors():
        return await attempt()


def unavailable() -> Unavailable:
    """Return the error for a database that is unavailable at the moment."""
    return Unavailable("DATABASE_UNAVAILABLE", "the database is unavailable; try again")


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn the driver's errors for an absent database into `Unavailable`.

    Their texts may hold addresses and SQL, and stay in the cause, for the log. `failures` lists these errors.
    """
    try:
        yield
    except Exception as error:
        match meaning_of(error):
            case Meaning.NOT_NOW:
                raise unavailable() from error
            case Meaning.AGAIN:
                text = "concurrent changes got in the way; try again"
                raise Unavailable("TRANSACTION_CONFLICT", text) from error
            case Meaning.FAULT:
                raise
