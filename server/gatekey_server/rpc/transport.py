"""The transport, grpcio: its limits, and the order in which a call is processed.

Every method is registered as one with a request stream, so that this code runs as soon as the headers are there. The
caller is identified first, and the message of an unidentified caller is never assembled.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast

import grpc
from gatekey.core.errors import DomainError, InvalidRequest, Overloaded, ResourceExhausted, Unavailable
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from gatekey_server.rpc import health, sockets
from gatekey_server.rpc.context import Later, RequestContext, Response
from gatekey_server.rpc.dispatcher import Endpoint
from gatekey_server.rpc.health import Health
from gatekey_server.rpc.tls import ServerTls
from gatekey_server.store.pauses import CALLS

MAX_CONCURRENT_CALLS = 2000
"""Calls in progress. Beyond this, calls are refused."""

MAX_PENDING_CALLS = 4000
"""Calls that wait to be processed. Beyond this, they are cancelled."""

MAX_RECEIVING_CALLS = 128
"""Calls of identified callers with an incomplete request. Beyond this, the oldest is ended."""

MAX_RECEIVING_HEALTH_CALLS = 128
"""The same for calls of health, which need no token."""

RECEIVE_TIMEOUT_S = 10.0
"""How long a request may take to arrive."""

MAX_OPEN_BYTES = 4096
"""The maximum size of a request that needs no token: of health or reflection."""

MAX_WATCHES = 4
"""Health watches per connection."""

MAX_REFLECTIONS = 2
"""Reflection streams per connection."""

REFLECTION_IDLE_S = 10.0
"""An idle reflection stream ends after this time."""

MAX_CLIENT_CONNECTIONS = 2000
MAX_STREAMS = 32
"""Concurrent calls per connection. A client's library queues more until there is room.

grpcio accepts one call per turn of the loop, in the order of arrival on all connections. So a call waits for as many
as other connections may have brought at once. With the 100 of RFC 9113, that would be twice as long as is acceptable.
"""

MAX_ENDED_STREAMS = 2 * MAX_STREAMS
"""Additional calls per connection, which have ended for the client and not yet for the server.

grpcio counts them as well. Without room for them it refuses calls of clients that respect `MAX_STREAMS`. With too much
room, a call waits behind as many that were cancelled as soon as they were made.
"""

# grpcio refuses a larger message before it is read, with a status but without details.
MAX_MESSAGE_BYTES = 1 << 20
MAX_METADATA_BYTES = 16 << 10
KEEPALIVE_TIME_S = 60
HANDSHAKE_TIMEOUT_S = 5
CONNECTION_IDLE_S = 900
MAX_CONNECTION_AGE_S = 3600

_NO_COMPRESSION = 1
_QUIET_S = 0.005
_QUIET_TURNS = 3
_SWEEP_S = 1.0

Context = grpc.aio.ServicerContext[Any, Any]

_OVERLOADED = Response.of(Overloaded("OVERLOADED", "too many calls are being worked on"))
_STOPPING = Response.of(Unavailable("SERVER_STOPPING", "the server is stopping"))


class Intake:
    """Receives requests. Incomplete ones are bounded in number and in time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._since: dict[asyncio.Task[Any], float] = {}
        self._sweep: asyncio.TimerHandle | None = None

    async def receive(self, context: Context) -> bytes:
        """Return the one message of a call. Raises `InvalidRequest`, `Overloaded` and `Unavailable`."""
        task = _current_task()
        if len(self._since) >= self._most:
            # Ordinary requests arrive within milliseconds, so the oldest incomplete one is not one of them.
            self._end(next(iter(self._since)))
        self._since[task] = _now()
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(_SWEEP_S, self._end_late)
        try:
            data = await context.read()
            more = data if data is grpc.aio.EOF else await context.read()
        except asyncio.CancelledError:
            if task in self._since:
                raise
            task.uncancel()
            raise Unavailable(
                "REQUEST_INCOMPLETE", "the request took too long to come, or others need the room"
            ) from None
        finally:
            self._since.pop(task, None)
        if data is grpc.aio.EOF or more is not grpc.aio.EOF:
            raise InvalidRequest("MESSAGE_COUNT_INVALID", "the call must have exactly one message")
        return bytes(data)

    @property
    def is_waiting(self) -> bool:
        """Whether some requests are incomplete."""
        return bool(self._since)

    def _end(self, task: "asyncio.Task[Any]") -> None:
        del self._since[task]
        task.cancel()

    def _end_late(self) -> None:
        latest = _now() - RECEIVE_TIMEOUT_S
        for task in [task for task, since in self._since.items() if since < latest]:
            self._end(task)
        self._sweep = asyncio.get_running_loop().call_later(_SWEEP_S, self._end_late) if self._since else None


class GrpcServer:
    """Serves endpoints, health and reflection.

    Args:
        endpoints: the endpoints to serve, by path.
        tells: the health service.
        tls: the credentials of the server.
        shares_port: whether other processes listen on the same port.
    """

    def __init__(
        self, endpoints: Mapping[str, Endpoint], tells: Health, *, tls: ServerTls | None, shares_port: bool
    ) -> None:
        self._health = tells
        self._tls = tls
        self._intake = Intake(MAX_RECEIVING_CALLS)
        self._health_intake = Intake(MAX_RECEIVING_HEALTH_CALLS)
        self._calls: set[asyncio.Task[Any]] = set()
        self._streams: set[asyncio.Task[Any]] = set()
        self._seats = Counter[str]()
        self._working = 0
        self._is_over = False
        self._port = 0
        self._server = _new_server(shares_port=shares_port, ages=tls is not None)
        self._register(endpoints)

    def listen(self, address: str) -> int:
        """Listen. Returns the port; 0 where that fails."""
        try:
            if self._tls is None:
                self._port = self._server.add_insecure_port(address)
            else:
                self._port = self._server.add_secure_port(address, self._tls.credentials)
        except RuntimeError:
            return 0
        return self._port

    async def start(self) -> None:
        """Start serving."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Finish the calls that have been read, refuse the others unprocessed, and end.

        grpcio cancels calls that arrive between its decision to stop and the moment when clients know. So reading
        stops first, and the calls that were read are finished. Then each client learns which call was the last:
        later ones were not processed, and the client's library retries them elsewhere.
        """
        self._health.end()
        ends_at = _now() + grace_s
        with suppress(OSError):
            sockets.pause_reading(self._port)
        await self._wait_until_quiet(ends_at)
        self._is_over = True
        for task in (*self._calls, *self._streams):
            task.cancel()
        if self._calls or self._streams:
            await asyncio.wait((*self._calls, *self._streams), timeout=_QUIET_S * _QUIET_TURNS)
        with suppress(OSError):
            sockets.pause_reading(self._port)
        await self._server.stop(None)

    async def _wait_until_quiet(self, ends_at: float) -> None:
        """Wait until no call has been in progress for some turns of the loop: more may have been read already."""
        quiet = turns = 0
        while quiet < _QUIET_TURNS and _now() < ends_at:
            await asyncio.sleep(_QUIET_S)
            quiet = 0 if self._calls else quiet + 1
            turns += 1
            if self._intake.is_waiting and turns % _QUIET_TURNS == 0:
                # Read the rest of a request that is incomplete.
                with suppress(OSError):
                    sockets.resume_reading(self._port)
                    await asyncio.sleep(0)
                    sockets.pause_reading(self._port)

    def _register(self, endpoints: Mapping[str, Endpoint]) -> None:
        services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for path, endpoint in endpoints.items():
            _, service, method = path.split("/")
            handler = self._unary(partial(self._serve, endpoint))
            services.setdefault(service, {})[method] = handler
        services[health.SERVICE_NAME] = {
            "Check": self._unary(self._open(self._health.check, health_pb2.HealthCheckRequest)),
            "List": self._unary(self._open(self._health.list, health_pb2.HealthListRequest)),
            "Watch": self._stream("watch", MAX_WATCHES, self._watch),
        }
        names = [*services, reflection.SERVICE_NAME]
        self._reflection = reflection.aio.ReflectionServicer(names)
        services[reflection.SERVICE_NAME] = {
            "ServerReflectionInfo": self._stream("reflection", MAX_REFLECTIONS, self._reflect)
        }
        for service, handlers in services.items():
            self._server.add_registered_method_handlers(service, handlers)

    def _unary(self, answer: Callable[[Context], Awaitable[bytes | Response]]) -> "grpc.RpcMethodHandler[Any, Any]":
        async def handle(_: object, context: Context) -> bytes:
            task = _begin(self._calls)
            try:
                response = await answer(context)
            except asyncio.CancelledError:
                if not self._is_over:
                    raise
                task.uncancel()
                response = _STOPPING
            return response if isinstance(response, bytes) else await _send(context, response)

        return grpc.stream_unary_rpc_method_handler(handle)

    async def _serve(self, endpoint: Endpoint, context: Context) -> bytes | Response:
        metadata = tuple(context.invocation_metadata() or ())
        authorization, identity = endpoint.recognise(metadata), None
        if authorization is None:
            identity = await endpoint.identify(RequestContext(metadata, context.auth_context))
            if isinstance(identity, Response):
                return identity
        try:
            data = await self._intake.receive(context)
        except DomainError as error:
            return Response.of(error)
        answer = endpoint.answer_at_once(data, authorization) if authorization is not None else None
        if isinstance(answer, bytes):
            return answer
        if self._working >= MAX_CONCURRENT_CALLS:
            if isinstance(answer, Later) and answer.loading is not None:
                answer.loading.cancel()
            return _OVERLOADED
        self._working += 1
        try:
            if isinstance(answer, Later):
                if answer.loading is not None:
                    # The response holds the error.
                    with suppress(Exception):
                        await answer.loading
                return await endpoint.answer_later(answer)
            if identity is None:
                identity = await endpoint.identify(RequestContext(metadata, context.auth_context))
            return identity if isinstance(identity, Response) else await endpoint.serve(data, identity)
        finally:
            self._working -= 1

    def _open(
        self, answer: Callable[[Any], Message], request_class: type[Message]
    ) -> Callable[[Context], Awaitable[bytes | Response]]:
        """Return a handler of health: without a token, and outside the limit of other calls."""

        async def handle(context: Context) -> bytes | Response:
            try:
                return answer(_read(request_class, await self._health_intake.receive(context))).SerializeToString()
            except DomainError as error:
                return Response.of(error)

        return handle

    def _stream(
        self, kind: str, most: int, answer: Callable[[Context], Awaitable[None]]
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        async def handle(_: object, context: Context) -> None:
            task = _begin(self._streams)
            try:
                with self._seat(f"{kind} {context.peer()}", most):
                    await answer(context)
            except DomainError as error:
                await _send(context, Response.of(error))
            except asyncio.CancelledError:
                if not self._is_over:
                    raise
                task.uncancel()
                await _send(context, _STOPPING)

        return grpc.stream_stream_rpc_method_handler(handle)

    @contextmanager
    def _seat(self, name: str, most: int) -> Iterator[None]:
        """Hold one of the few streams of a kind on a connection. Raises `ResourceExhausted` (`TOO_MANY_STREAMS`)."""
        if self._seats[name] >= most:
            raise ResourceExhausted("TOO_MANY_STREAMS", f"the connection has {most} streams of this kind")
        self._seats[name] += 1
        try:
            yield
        finally:
            self._seats[name] -= 1
            if not self._seats[name]:
                del self._seats[name]

    async def _watch(self, context: Context) -> None:
        request = _read(health_pb2.HealthCheckRequest, await self._health_intake.receive(context))
        async for response in self._health.watch(request):
            await context.write(response.SerializeToString())

    async def _reflect(self, context: Context) -> None:
        async for response in self._reflection.ServerReflectionInfo(_reflection_requests(context), context):
            await context.write(response.SerializeToString())


async def _reflection_requests(context: Context) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
    while True:
        try:
            async with asyncio.timeout(REFLECTION_IDLE_S):
                data = await context.read()
        except TimeoutError:
            raise Unavailable("STREAM_IDLE", "nothing was asked for too long") from None
        if data is grpc.aio.EOF:
            return
        yield _read(reflection_pb2.ServerReflectionRequest, data)


def _read(request_class: type[Any], data: bytes) -> Any:
    if len(data) > MAX_OPEN_BYTES:
        raise InvalidRequest("REQUEST_TOO_LARGE", f"the request has more than {MAX_OPEN_BYTES} bytes")
    try:
        return request_class.FromString(data)
    except DecodeError:
        raise InvalidRequest("REQUEST_MALFORMED", "the request is not a message of the method's type") from None


def _begin(tasks: "set[asyncio.Task[Any]]") -> "asyncio.Task[Any]":
    """Count the task of a call until its response is sent."""
    task = _current_task()
    CALLS.begin(task)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


def _current_task() -> "asyncio.Task[Any]":
    return cast("asyncio.Task[Any]", asyncio.current_task())


async def _send(context: Context, response: Response) -> bytes:
    if response.code is not grpc.StatusCode.OK:
        await context.abort(response.code, response.message, trailing_metadata=tuple(response.trailers))
    if response.trailers:
        context.set_trailing_metadata(tuple(response.trailers))
    return response.data


def _now() -> float:
    return asyncio.get_running_loop().time()


def _new_server(*, shares_port: bool, ages: bool) -> grpc.aio.Server:
    # Certificates are verified when a connection is made. It must not live much longer than they are valid.
    age = (("grpc.max_connection_age_ms", MAX_CONNECTION_AGE_S * 1000),) if ages else ()
    return grpc.aio.server(
        options=[
            # Otherwise an unrelated second server on the port would get half of the connections.
            ("grpc.so_reuseport", int(shares_port)),
            ("grpc.max_concurrent_streams", MAX_STREAMS),
            ("grpc.http2.max_deallocating_streams", MAX_ENDED_STREAMS),
            ("grpc.max_allowed_incoming_connections", MAX_CLIENT_CONNECTIONS),
            # Calls that the loop has not accepted yet. Beyond the soft limit, grpcio cancels some at random.
            ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            # The soft limit, beyond which calls are refused at random, and the hard one.
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
            # grpcio decompresses a message before it checks its size.
            ("grpc.compression_enabled_algorithms_bitset", _NO_COMPRESSION),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_S * 1000),
            ("grpc.max_connection_idle_ms", CONNECTION_IDLE_S * 1000),
            ("grpc.keepalive_time_ms", KEEPALIVE_TIME_S * 1000),
            # Otherwise neither side may ping while no call is in progress, and a client that does is disconnected.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            *age,
        ],
    )
