"""The composition root: a database, the processes that serve from it, and an orderly shutdown."""

import asyncio
import errno
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
import uvloop
from gatekey.core.errors import DomainError, Unavailable
from gatekey.core.secrets import Keyring, Mint

from gatekey_server.commands import bootstrap
from gatekey_server.rpc.certificates import MaterialError
from gatekey_server.rpc.context import utc_now
from gatekey_server.runtime import node, peppers
from gatekey_server.runtime.config import ConfigError, Settings
from gatekey_server.runtime.node import StartError
from gatekey_server.runtime.supervisor import Supervisor
from gatekey_server.store import schema, sessions
from gatekey_server.store.database import ConnectError, Database, Primary, why_not
from gatekey_server.store.dsn import DsnError
from gatekey_server.store.embedded import EmbeddedDatabaseError, EmbeddedPostgres
from gatekey_server.store.lock import LockTimeoutError
from gatekey_server.store.sessions import UnfitError

__all__ = ["Ready", "StartError", "migrate", "serve", "work"]

_WATCH_INTERVAL_S = 1.0
_DISK_FULL_INTERVAL_S = 5.0
# Besides its connections to the database, a server has files of its own, and a socket for each client connection.
_OPEN_FILES = 100
_OPEN_FILES_MAX = 65536

_START_PROBLEMS = (
    *(ConfigError, MaterialError, EmbeddedDatabaseError, DomainError),
    *(schema.SchemaError, LockTimeoutError, UnfitError, DsnError),
)

T = TypeVar("T")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ready:
    """The properties of a server that has started to serve."""

    address: str
    """HOST:PORT, with the port that was bound."""
    new_root_token: str | None
    """A root token that was created by this start. It cannot be shown again."""

    def __repr__(self) -> str:
        return f"Ready(address={self.address!r})"


def serve(settings: Settings, on_ready: Callable[[Ready], None], *, wants_root_token: bool = False) -> None:
    """Serve until SIGINT or SIGTERM. `on_ready` is called in a thread of its own once requests are served.

    With `wants_root_token`, a root token is created even if this is not the first start. Raises `StartError`. Call it
    from the main thread.
    """
    with _start_errors():
        _allow_open_files(settings)
        keyring = peppers.load(settings)
        with _database(settings) as (dsn, embedded):
            uvloop.run(_serve(settings, keyring, dsn, embedded, on_ready, wants_root_token=wants_root_token))


def work(settings: Settings, on_ready: Callable[[], None]) -> None:
    """Run one of several processes that serve on the same port, for a supervisor that has prepared everything.

    Raises `StartError`. Call it from the main thread.
    """

    async def run() -> None:
        async def ready(_: str) -> None:
            on_ready()

        stop = _stop_on_signals()
        if settings.database_url is None:
            raise StartError("a worker needs GATEKEY_DATABASE_URL")
        async with node.connect(settings, settings.database_url.get_secret_value()) as database:
            await node.serve(settings, peppers.load(settings), database, stop, ready, shares_port=True)

    with _start_errors():
        _allow_open_files(settings)
        uvloop.run(run())


def migrate(settings: Settings, *, grant_to: str | None = None, tell: Callable[[str], None]) -> str:
    """Upgrade the schema to this release, and return its version. The role `grant_to` gets what a server needs.

    `tell` receives a line whenever the migration waits for others. Raises `StartError`.
    """
    if settings.embedded and not (settings.data_dir / "postgres").exists():
        raise StartError(
            f"there is no database: GATEKEY_DATABASE_URL is not set, and {settings.data_dir} holds no embedded one,"
            " which `gatekey serve` would make and migrate by itself"
        )
    with _start_errors(), _database(settings) as (dsn, _):
        limit = settings.migrate_lock_timeout_s
        return uvloop.run(schema.migrate(dsn, grant_to=grant_to, lock_timeout_s=limit, tell=tell))


def _allow_open_files(settings: Settings) -> None:
    """Raise the limit of open files to the system's. Raises `StartError` where that is too low to start."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _OPEN_FILES + settings.max_connections
    wanted = _OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft != resource.RLIM_INFINITY and soft < needed:
        raise StartError(
            f"this process may have {soft} files and connections open (ulimit -n), and needs {needed} to start with"
        )


@contextmanager
def _start_errors() -> Iterator[None]:
    try:
        yield
    except _START_PROBLEMS as error:
        # The reason is for the operator. Callers are not told why the database cannot be reached.
        if isinstance(error, Unavailable) and error.reason == "DATABASE_UNAVAILABLE":
            cause = error.__cause__ or error
            why = str(cause) if isinstance(cause, ConnectError) else why_not(cause)
            raise StartError(f"the database cannot be used: {why}") from error
        raise StartError(str(error)) from error


async def _serve(
    settings: Settings,
    keyring: Keyring,
    dsn: str,
    embedded: EmbeddedPostgres | None,
    on_ready: Callable[[Ready], None],
    *,
    wants_root_token: bool,
) -> None:
    stop = _stop_on_signals()
    async with AsyncExitStack() as stack:

        async def prepare() -> tuple[Database, str | None]:
            if embedded is not None:
                await schema.migrate(dsn)
            else:
                await sessions.check(Primary(dsn), settings.acquire_timeout_s)
            database = await stack.enter_async_context(node.connect(settings, dsn))
            await _check_schema(database)
            return database, await _bootstrap(settings, database, keyring, wants_root_token=wants_root_token)

        prepared = await _unless(stop, prepare())
        if prepared is None:
            return
        database, new_root_token = prepared

        async def ready(address: str) -> None:
            await asyncio.to_thread(on_ready, Ready(address, new_root_token))

        watch = asyncio.create_task(_keep_alive(embedded, stop)) if embedded is not None else None
        try:
            await _run_processes(settings, keyring, database, stop, ready)
        finally:
            if watch is not None:
                watch.cancel()
        if watch is not None and watch.done() and not watch.cancelled():
            raise StartError(watch.result())


async def _run_processes(
    settings: Settings,
    keyring: Keyring,
    database: Database,
    stop: asyncio.Event,
    ready: Callable[[str], Awaitable[None]],
) -> None:
    if settings.workers == 1:
        await node.serve(settings, keyring, database, stop, ready)
    else:
        await Supervisor(settings, database.primary.dsn).run(stop, ready)


def _stop_on_signals() -> asyncio.Event:
    """Return an event that the first SIGINT or SIGTERM sets. The second signal ends this process at once.

    Its workers and its embedded database are then signalled by the kernel.
    """
    stop = asyncio.Event()

    def receive(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    def hang_up() -> None:
        # From a terminal that was closed, it stops the server. Elsewhere it means "reload", which needs no signal.
        stop.set() if sys.stderr.isatty() else _log.info("server.hangup_ignored")

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, receive, number)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    return stop


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Run the work; None where `stop` was set before it was done."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        return None if stop.is_set() else await working
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


async def _bootstrap(settings: Settings, database: Database, keyring: Keyring, *, wants_root_token: bool) -> str | None:
    first_start = await bootstrap.prepare(database, keyring)
    if settings.root_token is not None:
        token = settings.root_token.get_secret_value()
        if await bootstrap.add_root_token(database, lambda _: keyring.seal(token), utc_now()):
            _log.info("root_token.stored")
        return None
    if not first_start and not wants_root_token:
        return None
    mint = Mint(keyring)
    await bootstrap.add_root_token(database, mint, utc_now())
    return mint.secret


async def _check_schema(database: Database) -> None:
    needed, found = schema.newest_version(), await schema.current_version(database)
    if found is None:
        raise StartError("the database holds no Gatekey schema: run `gatekey migrate`")
    # Versions have four digits. A newer schema is accepted: migrations keep the previous release working.
    if found < needed:
        raise StartError(f"the database's schema is {found}, and {needed} is needed: run `gatekey migrate`")


async def _keep_alive(embedded: EmbeddedPostgres, stop: asyncio.Event) -> str:
    """Restart an embedded database that has died. Where that fails, stop the server and return the reason.

    Where the disk is full, retry until there is space.
    """
    while True:
        pause_s = _WATCH_INTERVAL_S
        if not embedded.running:
            _log.error("embedded_database.died")
            try:
                # Blocking the loop is fine: nothing can be served meanwhile. It must run in the main thread.
                embedded.stop()
                embedded.start()
            except EmbeddedDatabaseError as error:
                if os.strerror(errno.ENOSPC) not in str(error):
                    _log.error("embedded_database.lost", problem=str(error))
                    stop.set()
                    return f"the embedded database ended and cannot be started again: {error}"
                _log.error("embedded_database.disk_full", retry_after_s=_DISK_FULL_INTERVAL_S)
                pause_s = _DISK_FULL_INTERVAL_S
        await asyncio.sleep(pause_s)


@contextmanager
def _database(settings: Settings) -> Iterator[tuple[str, EmbeddedPostgres | None]]:
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value(), None
        return
    with EmbeddedPostgres(settings.data_dir) as embedded:
        yield embedded.dsn(), embedded
