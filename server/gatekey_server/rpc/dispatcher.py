"""The frame of every RPC: identify the caller, decode the request, turn errors into statuses.

Servicers are plain classes with one coroutine function for each method of their service. They are registered by the
service's descriptor, so no method is served without this frame, and none sees a request of an unidentified caller.
The result are endpoints, which the transport serves.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import structlog
from gatekey.core.errors import DomainError, InvalidRequest, Unavailable
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from gatekey_server.commands.mutations import Replayed
from gatekey_server.rpc import decoding
from gatekey_server.rpc.authentication import Authenticator
from gatekey_server.rpc.context import Call, Later, Metadata, RequestContext, Response
from gatekey_server.store import pauses

Identify = Callable[[MethodDescriptor, RequestContext], Awaitable[Any]]
Method = Callable[[Any, Any], Awaitable[Message]]
MethodAtOnce = Callable[[bytes, str], bytes | Later | None]

_log = structlog.get_logger()


class Dispatcher:
    """Makes an endpoint of each method of a service."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self.endpoints: dict[str, Endpoint] = {}
        """By the path of the method."""

    def register(self, service: ServiceDescriptor, servicer: object) -> None:
        """Add all methods of a service. Each receives the request and the `Call`."""
        self._register(service, servicer, self._authenticator.call)

    def register_unidentified(
        self, service: ServiceDescriptor, servicer: object, at_once: Mapping[str, MethodAtOnce]
    ) -> None:
        """Add all methods of a service; each gets the request and the `Token`, and identifies the caller itself.

        For methods that look up the caller together with what the request is about. Those in
        `at_once` are tried first, with the bytes of the request and the value of `authorization`:
        they answer None where the method itself has to be called.
        """
        self._register(service, servicer, self._authenticator.token, at_once)

    def _register(
        self,
        service: ServiceDescriptor,
        servicer: object,
        identify: Identify,
        at_once: Mapping[str, MethodAtOnce] | None = None,
    ) -> None:
        for method in service.methods:
            path, sooner = f"/{service.full_name}/{method.name}", (at_once or {}).get(method.name)
            knows = self._authenticator.knows if sooner is not None else None
            self.endpoints[path] = Endpoint(method, getattr(servicer, method.name), identify, knows, sooner)


class Endpoint:
    """One method. The caller is identified first, by the metadata. Then the request is received and served."""

    def __init__(
        self,
        method: MethodDescriptor,
        call_method: Method,
        identify: Identify,
        knows: Callable[[str], bool] | None,
        at_once: MethodAtOnce | None,
    ) -> None:
        self._method = method
        self._call_method = call_method
        self._identify = identify
        self._knows = knows
        self._at_once = at_once
        self._request_class = GetMessageClass(method.input_type)
        self._response_class = GetMessageClass(method.output_type)
        self.max_bytes = decoding.max_bytes(method.full_name)
        """The maximum size of a request."""

    def recognise(self, metadata: Metadata) -> str | None:
        """The `authorization` of a caller whose requests can be tried at once; None where it must be identified."""
        if self._knows is None:
            return None
        authorization = None
        for key, value in metadata:
            if key == "authorization":
                if authorization is not None or not isinstance(value, str):
                    return None
                authorization = value
        try:
            return authorization if authorization is not None and self._knows(authorization) else None
        except Exception:  # noqa: BLE001 - whatever it is, `identify` meets it again and says it
            return None

    async def identify(self, context: RequestContext) -> Any:
        """Identify the caller, before the request is received. Returns a `Response` where that fails."""
        try:
            return await self._identify(self._method, context)
        except Exception as error:  # noqa: BLE001 - the transport would send the text of whatever gets through
            return self._refuse(error)

    def answer_at_once(self, data: bytes, authorization: str) -> bytes | Later | None:
        """Answer a request without a task of its own; None where that cannot be done, or something is wrong."""
        if self._at_once is None or len(data) > self.max_bytes:
            return None
        try:
            return self._at_once(data, authorization)
        except Exception:  # noqa: BLE001 - whatever it is, `serve` meets it again and says it
            return None

    async def serve(self, data: bytes, identity: Any) -> Response:
        """Serve the request of an identified caller. Errors are returned as responses, too."""
        try:
            return await self._try_to_serve(data, identity)
        except Exception as error:  # noqa: BLE001 - as above
            return self._refuse(error)

    async def answer_later(self, later: Later) -> Response:
        """The answer that was waiting, now that it need not wait any more."""
        try:
            return Response((await later.answer()).SerializeToString())
        except Exception as error:  # noqa: BLE001 - as above
            return self._refuse(error)

    def _refuse(self, error: Exception) -> Response:
        if not isinstance(error, DomainError):
            _log.error("rpc.failed", method=self._method.full_name, error=type(error).__name__, exc_info=error)
            return Response(b"", (), grpc.StatusCode.INTERNAL, "internal error")
        if isinstance(error, Unavailable):
            cause = repr(error.__cause__)
            _log.warning("rpc.unavailable", method=self._method.full_name, reason=error.reason, cause=cause)
        return Response.of(error)

    async def _try_to_serve(self, data: bytes, identity: Any) -> Response:
        if len(data) > self.max_bytes:
            raise InvalidRequest("REQUEST_TOO_LARGE", f"the request has more than {self.max_bytes} bytes")
        is_large = len(data) > decoding.MAX_UNSEEN_BYTES
        # Decoding a large request takes some milliseconds.
        if is_large:
            await pauses.pause()
        request = decoding.decode(self._request_class, data)
        if is_large:
            await pauses.pause()
        try:
            message = await self._call_method(request, identity)
        except Replayed as replayed:
            message = self._response_class.FromString(replayed.response)
        return Response(message.SerializeToString(), tuple(identity.trailers) if isinstance(identity, Call) else ())
