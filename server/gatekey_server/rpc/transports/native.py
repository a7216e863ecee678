"""The transport of pygrpc-native: HTTP/2 in threads of its own, and calls as events for our loop.

Checks that are answered from memory are answered as they come, without a task of their own. Health,
reflection and unknown methods are left to a server of grpcio behind it.
"""

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import structlog
from pygrpc_native import EVENT_CANCEL, NativeGrpcFront

from gatekey_server.domain.errors import Overloaded
from gatekey_server.freshness import clock
from gatekey_server.rpc.edge import Endpoint, Incoming, Later, Metadata, Reply
from gatekey_server.rpc.overload import Queue
from gatekey_server.rpc.transports import KEEPALIVE_TIME_MS, MAX_MESSAGE_BYTES, MAX_METADATA_BYTES

_IO_THREADS = 1
_MAX_EVENTS = 4096
# However late all that wait are, some of them are answered.
_ANSWERING_S = 0.003
# Where calls come one after the other, waking the loop for each takes longer than answering it.
_GATHER_S = 0.0001

_OVERLOADED = Reply.of(Overloaded("OVERLOADED", "too many calls wait"))
_TOO_LARGE = Reply(b"", (), grpc.StatusCode.RESOURCE_EXHAUSTED, f"the message has more than {MAX_MESSAGE_BYTES} bytes")

# An event, as `NativeGrpcFront.recv_batch_details` yields it.
_Details = tuple[Metadata, str, float | None]
_Event = tuple[int, int, int, bytes | None, bytes | str | None, _Details | None]

_log = structlog.get_logger()


class NativeServer:
    """Serves endpoints.

    Args:
        endpoints: what to serve, by path.
        fallback: a server without a port that answers all other calls.
        shares_port: whether other processes listen on the same port.
    """

    def __init__(self, endpoints: Mapping[str, Endpoint], fallback: grpc.aio.Server, *, shares_port: bool) -> None:
        self._paths, self._endpoints = list(endpoints), list(endpoints.values())
        self._fallback = fallback
        self._shares_port = shares_port
        self._front: Any = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._queue = Queue()
        self._is_stopping = False
        self._directory = ""
        self._loop_is_idle = threading.Lock()
        # Released for each time that the thread is to wait for calls again.
        self._loop_is_idle.acquire()
        self._fetched_at = 0.0

    def add_insecure_port(self, address: str) -> int:
        """Listen; answers the port. Raises `RuntimeError`."""
        try:
            self._front = NativeGrpcFront(
                address,
                [(path, False) for path in self._paths],
                io_threads=_IO_THREADS,
                call_details=True,
                keepalive_time_ms=KEEPALIVE_TIME_MS,
                keepalive_permit_without_calls=True,
                max_metadata_size=MAX_METADATA_BYTES,
                reuse_port=self._shares_port,
            )
        except OSError as error:
            raise RuntimeError(f"cannot listen on {address}") from error
        port: int = self._front.bound_port
        return port

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """There is no TLS here; `choose` knows."""
        raise NotImplementedError

    async def start(self) -> None:
        """Begin to answer."""
        self._directory = tempfile.mkdtemp(prefix="gatekey-")
        path = Path(self._directory) / "fallback.sock"
        self._fallback.add_insecure_port(f"unix:{path}")
        await self._fallback.start()
        self._front.set_fallback(str(path))
        self._front.start()
        receive = threading.Thread(
            target=self._receive, args=(asyncio.get_running_loop(),), name="native-receive", daemon=True
        )
        receive.start()

    async def stop(self, grace: float | None) -> None:
        """Take no more calls, and end those that are not answered within `grace` seconds."""
        self._is_stopping = True
        fallback = asyncio.create_task(self._fallback.stop(grace))
        waiting = list(self._waiting.values())
        if waiting:
            await asyncio.wait(waiting, timeout=grace)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await fallback
        await asyncio.to_thread(self._front.close)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _receive(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for calls where the loop must not. Once there are some, the loop fetches more by itself.

        Two threads that both have work would pass the interpreter's lock to and fro with every call.
        """
        while (events := self._front.recv_batch_details(_MAX_EVENTS)) is not None:
            self._fetched_at = clock.now()
            try:
                loop.call_soon_threadsafe(self._take, events, self._fetched_at)
            except RuntimeError:
                # The loop was closed without `stop`.
                self._front.close()
                return
            self._loop_is_idle.acquire()
            time.sleep(_GATHER_S)

    def _take(self, events: Sequence[_Event], received_at: float) -> None:
        begun_at = clock.now()
        for kind, call_id, method, data, _, details in events:
            if kind == EVENT_CANCEL:
                if call_id in self._waiting:
                    self._waiting[call_id].cancel()
            elif data is not None and details is not None:
                try:
                    self._begin(call_id, self._endpoints[method], data, details, received_at, begun_at)
                except Exception as error:  # noqa: BLE001 - the calls after it must be taken, and the thread woken
                    _log.exception("transport.failed", error=type(error).__name__)
                    self._front.fail(call_id, grpc.StatusCode.INTERNAL.value[0], "internal error")
        more = self._front.recv_batch_details(_MAX_EVENTS, 0)
        if more:
            # They came at any time since the ones before, which were all there was then.
            before, self._fetched_at = self._fetched_at, clock.now()
            asyncio.get_running_loop().call_soon(self._take, more, (before + self._fetched_at) / 2)
        else:
            self._loop_is_idle.release()

    def _begin(
        self, call_id: int, endpoint: Endpoint, data: bytes, details: _Details, received_at: float, begun_at: float
    ) -> None:
        metadata, _, time_left = details
        now = clock.now()
        if self._is_stopping:
            self._front.fail(call_id, grpc.StatusCode.UNAVAILABLE.value[0], "the server is stopping")
        elif time_left is not None and now - received_at >= time_left:
            # Whoever asked has been told, or does not listen any more.
            return
        elif not endpoint.can_answer_at_once:
            self._answer_as_task(call_id, endpoint, data, metadata)
        elif self._queue.is_too_long(received_at, now) and now - begun_at >= _ANSWERING_S:
            self._send(call_id, _OVERLOADED)
        else:
            answer = endpoint.answer_at_once(data, metadata)
            if isinstance(answer, bytes):
                self._front.respond(call_id, answer)
            elif answer is not None:
                self._waiting[call_id] = answer.loading
                answer.loading.add_done_callback(partial(self._send_later, call_id, endpoint, answer))
            else:
                self._answer_as_task(call_id, endpoint, data, metadata)

    def _send_later(self, call_id: int, endpoint: Endpoint, later: Later, loading: "asyncio.Future[Any]") -> None:
        del self._waiting[call_id]
        if not loading.cancelled():
            self._send(call_id, endpoint.answer_later(later))

    def _answer_as_task(self, call_id: int, endpoint: Endpoint, data: bytes, metadata: Metadata) -> None:
        task = asyncio.create_task(self._answer(call_id, endpoint, data, metadata))
        self._waiting[call_id] = task
        task.add_done_callback(lambda _: self._waiting.pop(call_id))

    async def _answer(self, call_id: int, endpoint: Endpoint, data: bytes, metadata: Metadata) -> None:
        if len(data) > MAX_MESSAGE_BYTES:
            self._send(call_id, _TOO_LARGE)
        else:
            self._send(call_id, await endpoint.answer(data, Incoming(metadata)))

    def _send(self, call_id: int, reply: Reply) -> None:
        if reply.code is grpc.StatusCode.OK:
            self._front.respond(call_id, reply.data, trailing_metadata=reply.trailers)
        else:
            self._front.fail(call_id, reply.code.value[0], reply.message, trailing_metadata=reply.trailers)
