"""Connections, transactions, and what the driver's errors mean."""

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
"""How many may wait for a connection of one share."""

_MAX_LOADS = 4
_CLOSE_S = 2.0
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
"""PostgreSQL's."""
_MICROSECOND = timedelta(microseconds=1)

# A plan that was made while a table was as good as empty, when any index was as good as another, is soon made again.
_MAX_PLAN_AGE_S = 10

# While a session is being made, whatever the server says against it.
_NOT_THIS_HOST = (
    *(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError),
    # A name that no name server could be asked for.
    UnicodeError,
)

Host: TypeAlias = tuple[str | None, int | None]
"""A host and its port; None for the driver's default."""

SESSION: Mapping[str, str] = {
    "timezone": "UTC",
    # A plan is made once for each connection: making one takes longer than most queries do, and the server would make
    # a new one for every list of digests.
    "plan_cache_mode": "force_generic_plan",
    # Such a plan may be made while a table is empty, and is used until statistics are gathered, which may be
    # thousands of rows later: it must not be one that reads the whole table.
    "enable_seqscan": "off",
    # Nor one that begins with the products and reads all keys of all tenants, or joins by reading tables whole: tables
    # are joined in the order that the queries name them, each row by an index.
    "join_collapse_limit": "1",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    # By which plans look expensive enough to be compiled where there is no other way than to read a whole table.
    "jit": "off",
}
"""The settings of a server's sessions."""


class ConnectError(ConnectionError):
    """None of the hosts will do; the text says why, one after the other."""


class Primary:
    """The way to the one of a URL's hosts that takes writes. A hot standby is never used.

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
        """Connect to the first host that will do, beginning with the one that did before; each gets its share of time.

        The driver would give all the time to a host that does not answer. Raises `ConnectError`.
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
            # Not in the first message: poolers refuse settings there that they do not know, or leave them out.
            if statements := _set(settings):
                await connection.execute(statements)
        except BaseException:
            connection.terminate()
            raise
        return connection

    def demote_current_host(self) -> None:
        """Begin with another host the next time: this one accepts connections, but may no longer be the primary."""
        self._avoid(self._hosts[0])

    def _avoid(self, host: "Host") -> None:
        # Of several who find out at the same time, only the first moves it.
        if self._hosts[0] == host:
            self._hosts.rotate(-1)


def _write_time(time: datetime) -> tuple[int]:
    return ((time - _EPOCH) // _MICROSECOND,)


def read_time(microseconds: tuple[int]) -> datetime:
    """Read a time as PostgreSQL sends it; what Python has no time for is the nearest one that requests may name.

    The driver would make a time without a zone of infinity, and would fail with the whole statement at others.
    """
    try:
        return _EPOCH + timedelta(microseconds=microseconds[0])
    except OverflowError:
        return times.MAX_TIME if microseconds[0] > 0 else times.MIN_TIME


def why_not(error: BaseException, waited_s: float | None = None) -> str:
    """Why a database cannot be used, in one line; for the operator."""
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
    """What connections are set aside for, so that one kind of work never waits for another."""

    LOADS = enum.auto()
    """Checks of keys that are not in memory."""
    MUTATIONS = enum.auto()
    READS = enum.auto()
    """Gets and lists."""
    CONTROL = enum.auto()
    """Receipts and health."""
    BACKGROUND = enum.auto()
    """Maintenance, and what is written down later."""


def share_sizes(connections: int) -> dict[frozenset[Share], int]:
    """How many of a pool's connections each kind of work has; of fewer than five, some have theirs together."""
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
    """Some connections of a pool, and those who wait for one of them."""

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
    """A bounded pool of connections to one PostgreSQL, by shares; this is the way to one of them.

    Every method raises `Unavailable` (`DATABASE_UNAVAILABLE`) where the database cannot answer in time, and
    `Overloaded` (`OVERLOADED`) where too many wait for it.
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
        """The same pool, by the connections that are set aside for one kind of work."""
        return type(self)(self.primary, self._pool, self._acquire_timeout_s, self._places, self._turns, share)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, dsn: str, *, max_connections: int, statement_timeout_s: float, acquire_timeout_s: float
    ) -> AsyncIterator[Self]:
        """Open a pool and close it at the end."""
        with translated_errors():
            primary = Primary(dsn)
            pool = asyncpg.create_pool(
                connect=primary.connect,
                reset=_leave_as_it_is,
                # Connections are made when they are needed and kept: a pool that keeps some ready by itself
                # would go on trying, and logging, while the database is away.
                min_size=0,
                max_inactive_connection_lifetime=0,
                max_size=max_connections,
                # The server's own limit is the shorter, so that it answers before the client hangs up.
                command_timeout=statement_timeout_s + 1,
                timeout=acquire_timeout_s,
                server_settings={
                    **SESSION,
                    "application_name": "gatekey",
                    "statement_timeout": f"{statement_timeout_s * 1000:.0f}",
                    # Of a lock that another process holds: whoever waits for it has one of few connections.
                    "lock_timeout": f"{min(statement_timeout_s, LOCK_TIMEOUT_S) * 1000:.0f}",
                    # A process that is stopped in the middle of a transaction must not hold up the others' for long.
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
        """Do `work` in one transaction, and again where a concurrent one got in its way.

        `work` must have no effects but those on the connection it is given. With `scope`, it locks that tenant or
        product, and waits for its turn among the mutations before it takes one of their connections.
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
        """Borrow a connection, for statements that need no transaction."""
        with translated_errors():
            async with self._borrow(self._share) as connection:
                yield connection

    async def fetch(self, sql: str, *arguments: object) -> Sequence[asyncpg.Record]:
        """Run one query outside a transaction, and again where a concurrent change got in its way."""

        async def attempt() -> Sequence[asyncpg.Record]:
            async with self._borrow(self._share) as connection:
                rows: Sequence[asyncpg.Record] = await connection.fetch(sql, *arguments)
                return rows

        return await _with_retries(attempt)

    def terminate(self) -> None:
        """Break all connections off: whoever waits for the database has waited long enough."""
        self._pool.terminate()

    async def expire_connections(self) -> None:
        """Make new connections from now on: the old ones may lead to what is no longer the primary."""
        await self._pool.expire_connections()

    @asynccontextmanager
    async def _borrow(self, share: Share) -> AsyncIterator[Connection]:
        async with (
            self._places[share].take(self._acquire_timeout_s),
            self._pool.acquire(timeout=self._acquire_timeout_s) as connection,
        ):
            yield connection


async def _leave_as_it_is(_: object) -> None:
    """Nothing is ever left behind in a session: no settings, locks or cursors that outlive their transaction.

    The driver would have the server reset it after each use, which is a round trip for every query.
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
    """Return the error for a database that cannot do something now."""
    return Unavailable("DATABASE_UNAVAILABLE", "the database cannot answer now; try again")


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what the driver says of an absent database into `Unavailable`.

    Its texts may hold addresses and SQL: they stay in the cause, for the log. `failures` says which these are.
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
