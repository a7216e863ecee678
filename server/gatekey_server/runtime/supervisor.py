"""The supervisor, which starts, restarts and stops several processes that serve on one port."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from gatekey_server.runtime import peppers
from gatekey_server.runtime.config import Settings
from gatekey_server.runtime.node import GOODBYE_S, StartError, cannot_listen
from gatekey_server.runtime.variables import PREFIX, Address

_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 5.0
_LIVED_LONG_S = 10.0
_START_TIMEOUT_S = 60.0
# A worker that takes this much longer than it should to stop is killed.
_KILL_AFTER_S = 5.0

READY_FD = "GATEKEY_WORKER_READY_FD"
PARENT = "GATEKEY_WORKER_PARENT"

_log = structlog.get_logger()


class Supervisor:
    """Keeps `settings.workers` processes running.

    The kernel gives each new connection to one of them. They share nothing but the database.
    """

    def __init__(self, settings: Settings, dsn: str) -> None:
        self._settings = settings
        self._dsn = dsn

    async def run(self, stop: asyncio.Event, on_ready: Callable[[str], Awaitable[None]]) -> None:
        """Keep the workers running until `stop` is set, then stop them. Raises `StartError`."""
        with _reserve(self._settings.listen) as reserved:
            port = reserved.getsockname()[1]
            address = f"{self._settings.listen.rpartition(':')[0]}:{port}"
            try:
                await self._run_all(address, stop, on_ready)
            except ExceptionGroup as group:
                # If one worker cannot start, all are stopped: each would fail for the same reason.
                raise group.exceptions[0] from None

    async def _run_all(self, address: str, stop: asyncio.Event, on_ready: Callable[[str], Awaitable[None]]) -> None:
        started: list[asyncio.Future[None]] = [
            asyncio.get_running_loop().create_future() for _ in range(self._settings.workers)
        ]
        async with asyncio.TaskGroup() as tasks:
            for number, ready in enumerate(started):
                tasks.create_task(self._keep_running(number, address, stop, ready))
            all_started: asyncio.Future[Any] = asyncio.gather(*started)
            stopping: asyncio.Future[Any] = tasks.create_task(stop.wait())
            await asyncio.wait([all_started, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not stop.is_set():
                _log.info("supervisor.ready", address=address, workers=len(started))
                await on_ready(address)
            await stop.wait()
            _log.info("supervisor.stopping", grace_s=self._settings.shutdown_grace_s)

    async def _keep_running(
        self, number: int, address: str, stop: asyncio.Event, started: "asyncio.Future[None]"
    ) -> None:
        backoff = _FIRST_BACKOFF_S
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            began_at = loop.time()
            code = await self._run_one(number, address, stop, started)
            if stop.is_set():
                return
            if not started.done():
                raise StartError(f"a worker ended with exit code {code} before it was ready; its messages are above")
            _log.error("supervisor.worker_died", worker=number, exit_code=code)
            backoff = _FIRST_BACKOFF_S if loop.time() - began_at > _LIVED_LONG_S else min(backoff * 2, _MAX_BACKOFF_S)
            await _wait(stop, backoff)

    async def _run_one(self, number: int, address: str, stop: asyncio.Event, started: "asyncio.Future[None]") -> int:
        """Run one worker to its end. Returns its exit code."""
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "gatekey_server.runtime.worker",
                env=self._environment(number, address, writing),
                pass_fds=(writing,),
                # Not descriptor 2, which this process relays to its own log.
                stderr=sys.stderr,
                # Ctrl-C must reach the supervisor only, which then stops the workers.
                start_new_session=True,
            )
        finally:
            os.close(writing)
        ended = asyncio.create_task(process.wait())
        ready = asyncio.create_task(asyncio.to_thread(_read_ready, reading))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([ended, ready, stopped], timeout=_START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and ready.result():
                _log.info("supervisor.worker_ready", worker=number, pid=process.pid)
                if not started.done():
                    started.set_result(None)
                await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
            return await self._end(process, ended)
        finally:
            stopped.cancel()
            if not ended.done():
                process.kill()
            await ended
            await ready

    async def _end(self, process: asyncio.subprocess.Process, ended: "asyncio.Task[int]") -> int:
        if not ended.done():
            process.send_signal(signal.SIGTERM)
            await asyncio.wait([ended], timeout=self._settings.shutdown_grace_s + GOODBYE_S + _KILL_AFTER_S)
        if not ended.done():
            _log.error("supervisor.worker_killed", pid=process.pid)
            process.kill()
        return await ended

    def _environment(self, number: int, address: str, ready_fd: int) -> dict[str, str]:
        settings = self._settings
        inherited = {name: value for name, value in os.environ.items() if name != f"{PREFIX}ROOT_TOKEN"}
        given = {
            "LISTEN": address,
            "DATABASE_URL": self._dsn,
            "DATA_DIR": str(settings.data_dir),
            "WORKERS": "1",
            "WORKER_READY_FD": str(ready_fd),
            "WORKER_PARENT": str(os.getpid()),
        }
        if settings.peppers is None:
            given["PEPPERS_FILE"] = str(peppers.path(settings))
        if settings.metrics_listen is not None:
            host, _, port = settings.metrics_listen.rpartition(":")
            given["METRICS_LISTEN"] = f"{host}:{int(port) + number if int(port) else 0}"
        return inherited | {f"{PREFIX}{name}": value for name, value in given.items()}


def _read_ready(reading: int) -> bool:
    """Wait until a worker reports that it serves, or has ended."""
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read(1) != b""


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


def _reserve(listen: str) -> socket.socket:
    """Bind a port without listening, so that it stays reserved while no worker runs."""
    host, port = Address.parse(listen)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # First without sharing, which fails where another supervisor's workers use the port.
        with socket.socket(family, socket.SOCK_STREAM) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
            address = alone.getsockname()
        reserved = socket.socket(family, socket.SOCK_STREAM)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(address)
    except (OSError, UnicodeError) as error:
        raise cannot_listen(listen, "GATEKEY_LISTEN", error) from error
    return reserved
