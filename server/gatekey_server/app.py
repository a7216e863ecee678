"""The composition root: a database, the processes that answer from it, and their end in order."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
import uvloop

from gatekey_server import node, peppers
from gatekey_server.certificates import MaterialError
from gatekey_server.commands import bootstrap
from gatekey_server.config import ConfigError, Settings
from gatekey_server.domain.errors import GatekeyError, Unavailable
from gatekey_server.domain.secrets import Keyring, Mint
from gatekey_server.node import StartError
from gatekey_server.rpc.edge import utc_now
from gatekey_server.store import schema
from gatekey_server.store.database import Database
from gatekey_server.store.embedded import EmbeddedDatabaseError, EmbeddedPostgres
from gatekey_server.workers import Supervisor

__all__ = ["Ready", "StartError", "migrate", "serve", "work"]

_WATCH_INTERVAL_S = 1.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ready:
    """What is known once the server answers."""

    address: str
    """HOST:PORT, with the port that was taken."""
    new_root_token: str | None
    """A root token that was made by this start; it cannot be shown again."""

    def __repr__(self) -> str:
        return f"Ready(address={self.address!r})"


def serve(settings: Settings, on_ready: Callable[[Ready], None], *, wants_root_token: bool = False) -> None:
    """Serve until SIGINT or SIGTERM. `on_ready` is called in a thread of its own once requests are answered.

    With `wants_root_token` a root token is made even if this is not the first start.
    Raises `StartError`. To be called from the main thread.
    """
    with _start_errors():
        keyring = peppers.load(settings)
        with _database(settings) as (dsn, embedded):
            uvloop.run(_serve(settings, keyring, dsn, embedded, on_ready, wants_root_token=wants_root_token))


def work(settings: Settings, on_ready: Callable[[], None]) -> None:
    """Be one of several processes that answer on the same port, for a supervisor that has prepared everything.

    Raises `StartError`. To be called from the main thread.
    """

    async def run() -> None:
        async def ready(_: str) -> None:
            on_ready()

        stop = _stop_on_signals()
        if settings.database_url is None:
            raise StartError("a worker needs GATEKEY_DATABASE_URL")
        async with node.connect(settings, settings.database_url.get_secret_value()) as database:
            await node.answer(settings, peppers.load(settings), database, stop, ready, shares_port=True)

    with _start_errors():
        uvloop.run(run())


def migrate(settings: Settings, *, grant_to: str | None = None) -> str:
    """Bring the schema up to this release; answers its version. The role `grant_to` can then be a server's.

    Raises `StartError`.
    """
    if settings.embedded and not (settings.data_dir / "postgres").exists():
        raise StartError(
            f"there is no database: GATEKEY_DATABASE_URL is not set, and {settings.data_dir} holds no embedded one,"
            " which `gatekey serve` would make and migrate by itself"
        )
    with _start_errors(), _database(settings) as (dsn, _):
        uvloop.run(schema.migrate(dsn, grant_to=grant_to))
    return schema.newest_version()


@contextmanager
def _start_errors() -> Iterator[None]:
    try:
        yield
    except (ConfigError, MaterialError, EmbeddedDatabaseError, GatekeyError, schema.SchemaError) as error:
        # Callers are not told why the database cannot be reached; the operator is.
        if isinstance(error, Unavailable) and error.reason == "DATABASE_UNAVAILABLE":
            raise StartError(f"the database cannot be used: {error.__cause__}") from error
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
    if embedded is not None:
        await schema.migrate(dsn)
    async with node.connect(settings, dsn) as database:
        await _check_schema(database)
        new_root_token = await _bootstrap(settings, database, keyring, wants_root_token=wants_root_token)

        async def ready(address: str) -> None:
            await asyncio.to_thread(on_ready, Ready(address, new_root_token))

        watch = asyncio.create_task(_keep_alive(embedded, stop)) if embedded is not None else None
        try:
            await _answer(settings, keyring, database, stop, ready)
        finally:
            if watch is not None:
                watch.cancel()


async def _answer(
    settings: Settings,
    keyring: Keyring,
    database: Database,
    stop: asyncio.Event,
    ready: Callable[[str], Awaitable[None]],
) -> None:
    if settings.workers == 1:
        await node.answer(settings, keyring, database, stop, ready)
    else:
        await Supervisor(settings, database.primary.dsn).run(stop, ready)


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def _bootstrap(settings: Settings, database: Database, keyring: Keyring, *, wants_root_token: bool) -> str | None:
    first_start = await bootstrap.prepare(database, keyring)
    if settings.root_token is not None:
        token = settings.root_token.get_secret_value()
        if await bootstrap.add_root_token(database, keyring, lambda _: keyring.seal(token), utc_now()):
            _log.info("root_token.stored")
        return None
    if not first_start and not wants_root_token:
        return None
    mint = Mint(keyring)
    await bootstrap.add_root_token(database, keyring, mint, utc_now())
    return mint.secret


async def _check_schema(database: Database) -> None:
    needed, found = schema.newest_version(), await schema.current_version(database)
    if found is None:
        raise StartError("the database holds no Gatekey schema: run `gatekey migrate`")
    # Versions are numbers of four digits. A newer schema is fine: migrations keep the previous release working.
    if found < needed:
        raise StartError(f"the database's schema is {found}, and {needed} is needed: run `gatekey migrate`")


async def _keep_alive(embedded: EmbeddedPostgres, stop: asyncio.Event) -> None:
    """Bring an embedded database back that has died."""
    while True:
        if not embedded.running:
            _log.error("embedded_database.died")
            try:
                # Blocks the loop, and may: nothing can be answered meanwhile. It must be the main thread.
                embedded.stop()
                embedded.start()
            except EmbeddedDatabaseError as error:
                _log.error("embedded_database.lost", problem=str(error))
                stop.set()
        await asyncio.sleep(_WATCH_INTERVAL_S)


@contextmanager
def _database(settings: Settings) -> Iterator[tuple[str, EmbeddedPostgres | None]]:
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value(), None
        return
    with EmbeddedPostgres(settings.data_dir) as embedded:
        yield embedded.dsn(), embedded
