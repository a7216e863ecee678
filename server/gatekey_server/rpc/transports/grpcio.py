"""The transport of grpcio, which can do everything."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import grpc

from gatekey_server.rpc.edge import Endpoint, Incoming, Later
from gatekey_server.rpc.transports import KEEPALIVE_TIME_MS, MAX_MESSAGE_BYTES, MAX_METADATA_BYTES

MAX_CONCURRENT_CALLS = 2000
"""Beyond this, calls of any kind are refused: grpcio does not tell how long they have waited."""

Context = grpc.aio.ServicerContext[Any, Any]


def new_server(*, shares_port: bool = False, max_connection_age_s: int | None = None) -> grpc.aio.Server:
    """A server of grpcio without methods, with this service's limits."""
    age = () if max_connection_age_s is None else (("grpc.max_connection_age_ms", max_connection_age_s * 1000),)
    return grpc.aio.server(
        maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
        options=[
            # Two servers that know nothing of each other would each get half of the requests.
            ("grpc.so_reuseport", int(shares_port)),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
            # Else neither side may ping while no call is under way, and a client that does is sent away.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            *age,
        ],
    )


def serve(server: grpc.aio.Server, endpoints: Mapping[str, Endpoint]) -> None:
    """Serve endpoints, by their paths."""
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for path, endpoint in endpoints.items():
        _, service, method = path.split("/")
        services.setdefault(service, {})[method] = grpc.unary_unary_rpc_method_handler(_handler(endpoint))
    for service, handlers in services.items():
        server.add_registered_method_handlers(service, handlers)


def _handler(endpoint: Endpoint) -> Any:
    async def handle(data: bytes, context: Context) -> bytes:
        metadata = tuple(context.invocation_metadata() or ())
        answer = endpoint.answer_at_once(data, metadata)
        if isinstance(answer, bytes):
            return answer
        if isinstance(answer, Later):
            # What went wrong is in the reply.
            with suppress(Exception):
                await answer.loading
            reply = endpoint.answer_later(answer)
        else:
            reply = await endpoint.answer(data, Incoming(metadata, context.auth_context))
        if reply.code is not grpc.StatusCode.OK:
            await context.abort(reply.code, reply.message, trailing_metadata=tuple(reply.trailers))
        if reply.trailers:
            context.set_trailing_metadata(tuple(reply.trailers))
        return reply.data

    return handle
