"""The composition root: puts the parts together, runs them, and takes them down in order."""

import asyncio
import logging
import os
import random
import secrets
import signal
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import structlog
import uvloop

from gatekey_server.certificates import MaterialError
from gatekey_server.commands import bootstrap, upkeep
from gatekey_server.commands.receipts import ReceiptBook
from gatekey_server.commands.usage import UsageRecorder
from gatekey_server.config import ConfigError, Settings, parse_peppers, parse_tls_callers
from gatekey_server.domain.errors import GatekeyError, Unavailable
from gatekey_server.domain.secrets import Keyring, Mint
from gatekey_server.freshness.facts import FactSource
from gatekey_server.freshness.feed import Feed
from gatekey_server.freshness.history import History
from gatekey_server.freshness.lease import Lease
from gatekey_server.freshness.receipts import Receipts
from gatekey_server.rpc.edge import utc_now
from gatekey_server.rpc.server import Parts, Server, build_server
from gatekey_server.rpc.tls import ServerTls, server_tls
from gatekey_server.store import schema, service
from gatekey_server.store.database import Database
from gatekey_server.store.embedded import EmbeddedDatabaseError, EmbeddedPostgres

_PING_INTERVAL_S = 1.0

_log = structlog.get_logger()


class StartError(Exception):
    """The server cannot start; the text is for the operator."""


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
    try:
        keyring = _keyring(settings)
        with _database(settings) as (dsn, embedded):
            uvloop.run(_serve(settings, keyring, dsn, embedded, on_ready, wants_root_token=wants_root_token))
    except (ConfigError, MaterialError, EmbeddedDatabaseError, GatekeyError) as error:
        raise _start_error(error) from error


def migrate(settings: Settings, *, grant_to: str | None = None) -> str:
    """Bring the schema up to this release; answers its version. The role `grant_to` can then be a server's.

    Raises `StartError`.
    """
    if settings.embedded and not (settings.data_dir / "postgres").exists():
        raise StartError(
            f"there is no database: GATEKEY_DATABASE_URL is not set, and {settings.data_dir} holds no embedded one,"
            " which `gatekey serve` would make and migrate by itself"
        )
    try:
        with _database(settings) as (dsn, _):
            uvloop.run(schema.migrate(dsn, grant_to=grant_to))
    except (ConfigError, EmbeddedDatabaseError, GatekeyError, schema.SchemaError) as error:
        raise _start_error(error) from error
    return schema.newest_version()


def _start_error(error: Exception) -> StartError:
    # Callers are not told why the database cannot be reached; the operator is.
    if isinstance(error, Unavailable) and error.reason == "DATABASE_UNAVAILABLE":
        return StartError(f"the database cannot be used: {error.__cause__}")
    return StartError(str(error))


async def _serve(
    settings: Settings,
    keyring: Keyring,
    dsn: str,
    embedded: EmbeddedPostgres | None,
    on_ready: Callable[[Ready], None],
    *,
    wants_root_token: bool,
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if embedded is not None:
        await schema.migrate(dsn)
    async with Database.connect(
        dsn,
        max_connections=settings.max_connections,
        statement_timeout_s=settings.statement_timeout_s,
        acquire_timeout_s=settings.acquire_timeout_s,
    ) as database:
        await _check_schema(database)
        new_root_token = await _bootstrap(settings, database, keyring, wants_root_token=wants_root_token)
        tls = _tls(settings)
        history, lease = History(), Lease()
        feed = Feed(database, history, lease)
        facts = FactSource(
            database, history, lease, max_entries=settings.cache_entries, max_bytes=settings.cache_mb * 10**6
        )
        book = ReceiptBook(database, Receipts(database, feed))
        usage = UsageRecorder(database, settings.usage_flush_s)
        retention = timedelta(days=settings.tenant_retention_days)
        server = build_server(Parts(database, facts, keyring, utc_now, usage, book, retention, tls))
        address = _bind(server, settings.listen, tls)
        await server.grpc.start()
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(_watch(server, database, embedded, stop)),
                tasks.create_task(feed.run()),
                tasks.create_task(usage.run()),
                tasks.create_task(book.run()),
                tasks.create_task(_keep_up(settings, database)),
            ]
            ready = Ready(address, new_root_token)
            announce = tasks.create_task(asyncio.to_thread(on_ready, ready))
            _log.info("server.ready", address=address, tls=tls is not None, embedded_database=embedded is not None)
            await stop.wait()
            _log.info("server.stopping", grace_s=settings.shutdown_grace_s)
            await server.tell_health(serving=False)
            await server.grpc.stop(settings.shutdown_grace_s)
            for task in (*background, announce):
                task.cancel()
        await usage.flush()
        await book.flush()
        with suppress(GatekeyError):
            await feed.leave()


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


def _tls(settings: Settings) -> ServerTls | None:
    if settings.tls_certificate is None:
        return None
    callers = parse_tls_callers(settings.tls_callers) if settings.tls_callers is not None else {}
    return server_tls(settings.tls_files, callers)


def _bind(server: Server, listen: str, tls: ServerTls | None) -> str:
    try:
        if tls is None:
            port = server.grpc.add_insecure_port(listen)
        else:
            port = server.grpc.add_secure_port(listen, tls.credentials)
    except RuntimeError:
        port = 0
    if port == 0:
        raise StartError(f"cannot listen on {listen}: is another server there? (GATEKEY_LISTEN)")
    return f"{listen.rpartition(':')[0]}:{port}"


async def _watch(server: Server, database: Database, embedded: EmbeddedPostgres | None, stop: asyncio.Event) -> None:
    """Tell the health of the database, and bring an embedded one back that has died."""
    serving = None
    while True:
        try:
            await service.ping(database)
            now_serving = True
        except Unavailable:
            now_serving = False
        if now_serving != serving:
            serving = now_serving
            await server.tell_health(serving=serving)
            _log.info("database.available") if serving else _log.warning("database.unavailable")
        if embedded is not None and not embedded.running:
            _log.error("embedded_database.died")
            try:
                # Blocks the loop, and may: nothing can be answered meanwhile. It must be the main thread.
                embedded.stop()
                embedded.start()
            except EmbeddedDatabaseError as error:
                _log.error("embedded_database.lost", problem=str(error))
                stop.set()
        await asyncio.sleep(_PING_INTERVAL_S)


async def _keep_up(settings: Settings, database: Database) -> None:
    """Remove what is over, again and again."""
    retention = timedelta(days=settings.key_retention_days)
    while True:
        # Servers that were started together do not do it together.
        await asyncio.sleep(settings.upkeep_interval_s * random.uniform(0.8, 1.2))  # noqa: S311
        try:
            removed = await upkeep.remove_what_is_over(database, retention, utc_now())
        except GatekeyError as error:
            _log.warning("upkeep.postponed", reason=error.reason)
            continue
        if any(removed.values()):
            _log.info("upkeep.done", **removed)


@contextmanager
def _database(settings: Settings) -> Iterator[tuple[str, EmbeddedPostgres | None]]:
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value(), None
        return
    with EmbeddedPostgres(settings.data_dir) as embedded:
        yield embedded.dsn(), embedded


def _keyring(settings: Settings) -> Keyring:
    if settings.peppers is not None:
        return Keyring(parse_peppers(settings.peppers.get_secret_value()))
    path = settings.peppers_file or settings.data_dir / "peppers"
    try:
        if settings.peppers_file is None and not path.exists():
            if (settings.data_dir / "postgres").exists():
                raise ConfigError([f"{path} is gone, and the database's keys are sealed under it: bring it back"])
            _write_private(path, generate_pepper(1) + "\n")
        return Keyring(parse_peppers(path.read_text()))
    except (OSError, ValueError) as error:
        raise ConfigError([f"GATEKEY_PEPPERS_FILE: {path}: {error}"]) from error


def generate_pepper(version: int) -> str:
    """Make a pepper, in the form of `GATEKEY_PEPPERS`."""
    return f"{version}:{b64encode(secrets.token_bytes(32)).decode()}"


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        # A pepper that is lost after keys were sealed under it loses the keys.
        os.fsync(file.fileno())


def configure_logging(settings: Settings) -> None:
    """Log to standard error, ours and the libraries': for people on a terminal, else one JSON object a line."""
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering: list[structlog.typing.Processor] = (
        # The default would print the local variables of every frame, and with them keys and tokens.
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
