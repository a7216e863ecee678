"""Connections, transactions, and what the driver's errors mean."""

import asyncio
import urllib.parse
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeAlias, TypeVar

import asyncpg

from gatekey_server.domain.errors import Unavailable

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
T = TypeVar("T")

TRANSACTION_ATTEMPTS = 5

_LATER = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.LockNotAvailableError,
    # Refused by name or password: nothing that a request could mend.
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    # The driver's word for a connection that broke in the middle of its handshake.
    asyncpg.InternalClientError,
    # A transaction that did nothing for too long, because this process was stopped or blocked.
    asyncpg.IdleInTransactionSessionTimeoutError,
    # A primary that has become a standby; a new connection finds the new primary.
    asyncpg.ReadOnlySQLTransactionError,
    OSError,
    TimeoutError,
)
IDLE_IN_TRANSACTION_S = 1.0

SESSION: Mapping[str, str] = {
    "timezone": "UTC",
    # A plan is made once for each connection: making one takes longer than most queries do, and the server would make
    # a new one for every list of digests.
    "plan_cache_mode": "force_generic_plan",
    # Such a plan may be made while a table is empty, and is used until statistics are gathered, which may be
    # thousands of rows later: it must not be one that reads the whole table.
    "enable_seqscan": "off",
    # By which plans look expensive enough to be compiled where there is no other way than to read a whole table.
    "jit": "off",
}
"""The settings of a server's sessions."""

_CONFLICTS = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    # The schema was migrated meanwhile, and the driver's plans are of the old one.
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
)


class Primary:
    """The way to the one of a URL's hosts that takes writes. A hot standby is never used."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._urls = deque(_url_of_each_host(dsn))

    async def connect(self, *_: object, timeout: float, **options: Any) -> "asyncpg.Connection[asyncpg.Record]":  # noqa: ASYNC109 - the driver's word
        """Connect to the first host that will do, beginning with the one that did before; each gets its share of time.

        The driver would give all the time to a host that does not answer.
        """
        problem: Exception | None = None
        for url in tuple(self._urls):
            try:
                return await asyncpg.connect(
                    url, timeout=timeout / len(self._urls), target_session_attrs="read-write", **options
                )
            except _LATER as error:
                problem = error
                self._avoid(url)
        raise problem or AssertionError("a URL has a host")

    def doubt(self) -> None:
        """Begin with another host the next time: this one accepts connections, but may no longer be the primary."""
        self._avoid(self._urls[0])

    def _avoid(self, url: str) -> None:
        # Of several who find out at the same time, only the first moves it.
        if self._urls[0] == url:
            self._urls.rotate(-1)


class Database:
    """A bounded pool of connections to one PostgreSQL.

    Every method raises `Unavailable` (`DATABASE_UNAVAILABLE`) where the database cannot answer in time.
    """

    def __init__(self, primary: "Primary", pool: "asyncpg.Pool[asyncpg.Record]", acquire_timeout_s: float) -> None:
        self.primary = primary
        self._pool = pool
        self._acquire_timeout_s = acquire_timeout_s

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, dsn: str, *, max_connections: int, statement_timeout_s: float, acquire_timeout_s: float
    ) -> AsyncIterator["Database"]:
        """Open a pool and close it at the end."""
        with translated_errors():
            async with checked_url():
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
                    # A process that is stopped in the middle of a transaction must not hold up the others' for long.
                    "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_S * 1000:.0f}",
                },
            )
            async with checked_url():
                await pool
                await pool.fetchval("select 1")
        try:
            yield cls(primary, pool, acquire_timeout_s)
        finally:
            try:
                async with asyncio.timeout(statement_timeout_s):
                    await pool.close()
            except TimeoutError:
                pool.terminate()

    async def transaction(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Do `work` in one transaction, and again where a concurrent one got in its way.

        `work` must have no effects but those on the connection it is given.
        """

        async def attempt() -> T:
            async with self._borrow() as connection, connection.transaction():
                return await work(connection)

        return await _tried_again(attempt)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Borrow a connection, for statements that need no transaction."""
        try:
            async with self._borrow() as connection:
                yield connection
        except _CONFLICTS as error:
            raise _conflict() from error

    async def fetch(self, sql: str, *arguments: object) -> Sequence[asyncpg.Record]:
        """Run one query outside a transaction, and again where a concurrent change got in its way."""

        async def attempt() -> Sequence[asyncpg.Record]:
            async with self._borrow() as connection:
                rows: Sequence[asyncpg.Record] = await connection.fetch(sql, *arguments)
                return rows

        return await _tried_again(attempt)

    async def expire_connections(self) -> None:
        """Make new connections from now on: the old ones may lead to what is no longer the primary."""
        await self._pool.expire_connections()

    @asynccontextmanager
    async def _borrow(self) -> AsyncIterator[Connection]:
        with translated_errors():
            async with self._pool.acquire(timeout=self._acquire_timeout_s) as connection:
                yield connection


async def _leave_as_it_is(_: object) -> None:
    """Nothing is ever left behind in a session: no settings, locks or cursors that outlive their transaction.

    The driver would have the server reset it after each use, which is a round trip for every query.
    """


async def _tried_again(attempt: Callable[[], Awaitable[T]]) -> T:
    for _ in range(TRANSACTION_ATTEMPTS - 1):
        try:
            return await attempt()
        except _CONFLICTS:
            continue
    try:
        return await attempt()
    except _CONFLICTS as error:
        raise _conflict() from error


def _conflict() -> Unavailable:
    return Unavailable("TRANSACTION_CONFLICT", "concurrent changes got in the way; try again")


@asynccontextmanager
async def checked_url() -> AsyncIterator[None]:
    """For the first use of a URL, which the driver parses only then."""
    try:
        yield
    except ValueError as error:
        # Without its text, which may repeat the password.
        raise Unavailable("DATABASE_URL_INVALID", "the database's URL cannot be understood") from error


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what the driver says of an absent database into `Unavailable`.

    Its texts may hold addresses and SQL: they stay in the cause, for the log.
    """
    try:
        yield
    except _LATER as error:
        raise _unavailable() from error
    except asyncpg.InterfaceError as error:
        # The driver's ValueErrors are about arguments, and bugs of ours.
        if isinstance(error, ValueError):
            raise
        raise _unavailable() from error


def _unavailable() -> Unavailable:
    return Unavailable("DATABASE_UNAVAILABLE", "the database cannot answer now; try again")


def _url_of_each_host(dsn: str) -> list[str]:
    """A URL for each host of a URL, which has them after the login or as a parameter."""
    url = urllib.parse.urlsplit(dsn)
    login, at, hosts = url.netloc.rpartition("@")
    if "," in hosts:
        return [dsn.replace(f"//{url.netloc}", f"//{login}{at}{host}", 1) for host in hosts.split(",")]
    parameters = dict(urllib.parse.parse_qsl(url.query))
    paths = parameters.get("host", "").split(",")
    ports = parameters.get("port", "").split(",")
    # What is odd is left to the driver, which says so.
    if hosts or len(paths) == 1 or len(ports) not in {1, len(paths)}:
        return [dsn]
    if len(ports) == 1:
        ports *= len(paths)
    return [
        dsn.replace(f"?{url.query}", f"?{urllib.parse.urlencode({**parameters, 'host': path, 'port': port})}", 1)
        for path, port in zip(paths, ports, strict=True)
    ]
