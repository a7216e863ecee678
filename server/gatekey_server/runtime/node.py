"""A process that serves: its parts, and its background tasks."""

import asyncio
import errno
import gc
import random
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import structlog
from gatekey.core.errors import DomainError, Unavailable
from gatekey.core.invalidation_index import InvalidationIndex
from gatekey.core.secrets import Keyring

from gatekey_server.background import maintenance
from gatekey_server.background.propagation_recorder import PropagationRecorder
from gatekey_server.background.uses import UsageRecorder
from gatekey_server.freshness.change_log import ChangeLog
from gatekey_server.freshness.change_poller import ChangePoller
from gatekey_server.freshness.lease import PrimaryLease
from gatekey_server.freshness.propagation import PropagationBarrier
from gatekey_server.freshness.snapshot_source import SnapshotSource
from gatekey_server.rpc.context import utc_now
from gatekey_server.rpc.server import Server, ServerDependencies, build_server
from gatekey_server.rpc.tls import ServerTls, server_tls
from gatekey_server.runtime import metrics
from gatekey_server.runtime.config import Settings, parse_tls_callers
from gatekey_server.runtime.variables import Address
from gatekey_server.store import service
from gatekey_server.store.database import Database, Share

_PING_INTERVAL_S = 1.0
_RESTART_S = 1.0
# How long other threads may keep the event loop waiting each time that it wakes up, which is several times a call.
_SWITCH_INTERVAL_S = 0.0005
GOODBYE_S = 5.0
"""After the grace for its requests, a process has this long to write what is pending."""
_YOUNG_OBJECTS = 10_000

_log = structlog.get_logger()


class StartError(Exception):
    """The server cannot start. The text is for the operator."""


@asynccontextmanager
async def connect(settings: Settings, dsn: str) -> AsyncIterator[Database]:
    """Open the configured pool of connections."""
    async with Database.connect(
        dsn,
        max_connections=settings.max_connections,
        statement_timeout_s=settings.statement_timeout_s,
        acquire_timeout_s=settings.acquire_timeout_s,
    ) as database:
        yield database


async def serve(
    settings: Settings,
    keyring: Keyring,
    database: Database,
    stop: asyncio.Event,
    on_ready: Callable[[str], Awaitable[None]],
    *,
    shares_port: bool = False,
) -> None:
    """Serve requests until `stop` is set. `on_ready` is called with the address once they are served.

    With `shares_port` other processes may listen on the same port. Raises `StartError`.
    """
    _tune_gc()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    index, log, lease = InvalidationIndex(), ChangeLog(), PrimaryLease()
    control, background_work = database.share(Share.CONTROL), database.share(Share.BACKGROUND)
    poller = ChangePoller(control, index, log, lease)
    snapshots = SnapshotSource(
        database.share(Share.LOADS),
        index,
        lease,
        max_entries=settings.cache_entries,
        max_bytes=settings.cache_mb * 10**6,
    )
    barrier = PropagationBarrier(control, poller)
    recorder = PropagationRecorder(background_work, barrier)
    usage = UsageRecorder(background_work, settings.usage_flush_s)
    retention = timedelta(days=settings.tenant_retention_days)
    tls = _tls(settings)
    server = build_server(
        ServerDependencies(
            database, snapshots, log, lease, keyring, utc_now, usage, recorder, retention, tls, shares_port
        )
    )
    # grpcio reports the reason only in its own log. A shared port is bound by the supervisor already.
    if not shares_port and (error := _why_not(settings.listen)) is not None:
        raise cannot_listen(settings.listen, "GATEKEY_LISTEN", error)
    address = _bind(server, settings.listen)
    health = _Health(server, control, lease)
    _serve_metrics(settings, metrics.Sources(snapshots, index, lease, poller, barrier))
    await server.grpc.start()
    async with asyncio.TaskGroup() as tasks:
        background = [
            tasks.create_task(_supervise(work))
            for work in (
                health.run,
                poller.run,
                usage.run,
                recorder.run,
                lambda: _run_maintenance(settings, background_work),
            )
        ]
        background.append(tasks.create_task(_announce(on_ready, address)))
        _log.info("server.ready", address=address, tls=tls is not None)
        await stop.wait()
        _log.info("server.stopping", grace_s=settings.shutdown_grace_s)
        await server.grpc.stop(settings.shutdown_grace_s)
        for task in background:
            task.cancel()
        goodbye = tasks.create_task(_say_goodbye(usage, recorder, poller))
        await asyncio.wait([goodbye, *background], timeout=GOODBYE_S)
        # While the database is away, each of them would wait for it longer than its work is worth.
        database.terminate()


async def _say_goodbye(usage: UsageRecorder, recorder: PropagationRecorder, poller: ChangePoller) -> None:
    """Write what is pending, and unregister."""
    with suppress(DomainError):
        await usage.flush()
        await recorder.flush()
        await poller.leave()


def _tune_gc() -> None:
    """Let the garbage collector collect young objects only.

    A full collection visits the whole cache. That takes seconds for a large one, while nothing is served. Cached
    objects have no cycles, and other cycles die young.
    """
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 10, sys.maxsize >> 32)


async def _announce(on_ready: Callable[[str], Awaitable[None]], address: str) -> None:
    await on_ready(address)


async def _supervise(work: Callable[[], Awaitable[None]]) -> None:
    """Run a task that never ends, and restart it if it does: a failing background task must not stop serving."""
    while True:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - whatever it is
            _log.exception("background.failed", error=type(error).__name__)
        await asyncio.sleep(_RESTART_S)


def _serve_metrics(settings: Settings, sources: metrics.Sources) -> None:
    if settings.metrics_listen is None:
        return
    try:
        address = metrics.serve(Address.parse(settings.metrics_listen), sources)
    except (OSError, UnicodeError) as error:
        raise cannot_listen(settings.metrics_listen, "GATEKEY_METRICS_LISTEN", error) from error
    _log.info("metrics.ready", address=address)


def _tls(settings: Settings) -> ServerTls | None:
    if settings.tls_certificate is None:
        return None
    callers = parse_tls_callers(settings.tls_callers) if settings.tls_callers is not None else {}
    return server_tls(settings.tls_files, callers)


def _bind(server: Server, listen: str) -> str:
    port = server.grpc.listen(listen)
    if port == 0:
        raise cannot_listen(listen, "GATEKEY_LISTEN", None)
    return f"{listen.rpartition(':')[0]}:{port}"


def _why_not(listen: str) -> Exception | None:
    """Return the system's reason why an address cannot be used."""
    address = Address.parse(listen)
    try:
        family, _, _, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen()
    except (OSError, UnicodeError) as error:
        return error
    return None


def cannot_listen(listen: str, variable: str, error: Exception | None) -> StartError:
    """Return the message for an address that cannot be listened on, with what to do about it."""
    number, why = getattr(error, "errno", None), getattr(error, "strerror", None) or "not a name that can be looked up"
    if error is None or number == errno.EADDRINUSE:
        host = listen.rpartition(":")[0]
        option = f", or `gatekey serve --listen {host}:0`," if variable == "GATEKEY_LISTEN" else ""
        why = f"another program listens there. {variable}={host}:0{option} takes a free port"
    elif number == errno.EACCES:
        why = f"{why}: this user may not use a port below 1024"
    return StartError(f"cannot listen on {listen}: {why} ({variable})")


class _Health:
    """Reports as the server's health whether the database responds and is the primary."""

    def __init__(self, server: Server, database: Database, lease: PrimaryLease) -> None:
        self._server = server
        self._database = database
        self._lease = lease
        self.is_serving: bool | None = None

    async def run(self) -> None:
        while True:
            try:
                await self._lease.wait_until_held()
                await service.ping(self._database)
                is_serving = True
            except Unavailable:
                is_serving = False
            if is_serving != self.is_serving:
                self.is_serving = is_serving
                self._server.health.set(serving=is_serving)
                _log.info("database.available") if is_serving else _log.warning("database.unavailable")
            await asyncio.sleep(_PING_INTERVAL_S)


async def _run_maintenance(settings: Settings, database: Database) -> None:
    """Purge what has expired, at intervals."""
    retention = timedelta(days=settings.key_retention_days)
    while True:
        # Random, so that servers that were started together do not run it together.
        await asyncio.sleep(settings.maintenance_interval_s * random.uniform(0.8, 1.2))  # noqa: S311
        try:
            removed = await maintenance.purge_expired(database, retention, utc_now())
        except DomainError as error:
            _log.warning("maintenance.postponed", reason=error.reason)
            continue
        if any(removed.values()):
            _log.info("maintenance.done", **removed)
