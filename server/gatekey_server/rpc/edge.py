"""What happens around every RPC: decoding, the caller's token, and errors.

Servicers are plain classes with one coroutine function for each method of their service. They are
registered from the service's descriptor, so that no method can be left without the edge, and none
of them sees a request whose caller is not known.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar

import grpc
import structlog
from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

from gatekey_server.commands import callers
from gatekey_server.commands.callers import Caller
from gatekey_server.domain.errors import GatekeyError, InvalidRequest, Unauthenticated, Unavailable
from gatekey_server.domain.secrets import Digest, Keyring
from gatekey_server.freshness.facts import FactSource
from gatekey_server.rpc import errors

MAX_REQUEST_BYTES = 1 << 20
# Beyond this the transport refuses a message before it is read, with a status but without details.
MAX_TRANSPORT_BYTES = 4 << 20

_SCHEME = "bearer "

Context = grpc.aio.ServicerContext[Any, Any]
Clock = Callable[[], datetime]
Method = Callable[[Any, Any], Awaitable[Message]]

_log = structlog.get_logger()
T = TypeVar("T")


def utc_now() -> datetime:
    """The time of day, as expiry is judged by it."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Malformed:
    """Stands in for a request that could not be decoded."""

    error: InvalidRequest


@dataclass(frozen=True, slots=True)
class Token:
    """A service token as it was presented: hashed, not yet looked up."""

    digests: tuple[Digest, ...]


class Edge:
    """Wraps methods of servicers into handlers of gRPC."""

    def __init__(self, facts: FactSource, keyring: Keyring, clock: Clock) -> None:
        self._facts = facts
        self._keyring = keyring
        self._clock = clock

    def register(self, server: grpc.aio.Server, service: ServiceDescriptor, servicer: object) -> None:
        """Serve all methods of a service; each gets the request and the `Caller`."""
        self._register(server, service, servicer, self._caller)

    def register_unidentified(self, server: grpc.aio.Server, service: ServiceDescriptor, servicer: object) -> None:
        """Serve all methods of a service; each gets the request and the `Token`, and identifies the caller itself.

        For methods that look up the caller together with what the request is about.
        """
        self._register(server, service, servicer, self._token)

    def _register(
        self,
        server: grpc.aio.Server,
        service: ServiceDescriptor,
        servicer: object,
        identify: Callable[[Context], Awaitable[T]],
    ) -> None:
        handlers = {
            method.name: grpc.unary_unary_rpc_method_handler(
                _handler(method.full_name, getattr(servicer, method.name), identify),
                request_deserializer=_decoder(method.input_type),
                response_serializer=GetMessageClass(method.output_type).SerializeToString,
            )
            for method in service.methods
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))

    async def _token(self, context: Context) -> Token:
        values = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        if not values:
            raise Unauthenticated("TOKEN_MISSING", "the metadata `authorization: Bearer <service token>` is required")
        if len(values) > 1:
            raise Unauthenticated("TOKEN_INVALID", "there is more than one `authorization`")
        text = values[0] if isinstance(values[0], str) else ""
        if not text.lower().startswith(_SCHEME):
            raise Unauthenticated("TOKEN_INVALID", "`authorization` is not of the form `Bearer <service token>`")
        return Token(self._keyring.digests(text[len(_SCHEME) :].strip()))

    async def _caller(self, context: Context) -> Caller:
        token = await self._token(context)
        facts = await self._facts.get(token.digests)
        return callers.identify(facts, token.digests, self._clock())


def _handler(
    name: str, method: Method, identify: Callable[[Context], Awaitable[T]]
) -> Callable[[Message | Malformed, Context], Awaitable[Message]]:
    async def handle(request: Message | Malformed, context: Context) -> Message:
        try:
            # The token first: to whoever has none, a bad request tells nothing.
            identity = await identify(context)
            if isinstance(request, Malformed):
                raise request.error
            return await method(request, identity)
        except GatekeyError as error:
            if isinstance(error, Unavailable):
                _log.warning("rpc.unavailable", method=name, reason=error.reason, cause=repr(error.__cause__))
            await _abort(context, error)
        except Exception as error:  # noqa: BLE001 - the transport would send the text of whatever gets through
            _log.exception("rpc.failed", method=name, error=type(error).__name__)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")
            raise AssertionError from None

    return handle


async def _abort(context: Context, error: GatekeyError) -> NoReturn:
    await context.abort(
        errors.status_code(error),
        errors.message(error),
        trailing_metadata=((errors.DETAILS_KEY, errors.details(error)),),
    )
    raise AssertionError


def _decoder(descriptor: Descriptor) -> Callable[[bytes], Message | Malformed]:
    message_class = GetMessageClass(descriptor)

    def decode(data: bytes) -> Message | Malformed:
        if len(data) > MAX_REQUEST_BYTES:
            return Malformed(
                InvalidRequest("REQUEST_TOO_LARGE", f"the request has more than {MAX_REQUEST_BYTES} bytes")
            )
        try:
            return message_class.FromString(data)
        except DecodeError:
            field = _field_with_bad_text(descriptor, data)
            if field is not None:
                return Malformed(InvalidRequest.at(field, "TEXT_INVALID", "is not UTF-8"))
            return Malformed(InvalidRequest("REQUEST_MALFORMED", "the request is not a message of the method's type"))

    return decode


def _field_with_bad_text(descriptor: Descriptor, data: bytes) -> str | None:
    """The path of the first string field that is not UTF-8, in a message that could not be decoded."""
    try:
        # Every field is unknown to an empty message, which therefore keeps them as they came.
        fields = UnknownFieldSet(Empty.FromString(data))
    except DecodeError:
        return None
    for index in range(len(fields)):
        unknown = fields[index]
        field = descriptor.fields_by_number.get(unknown.field_number)
        if field is None or not isinstance(unknown.data, bytes):
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            try:
                unknown.data.decode()
            except UnicodeDecodeError:
                return field.name
        elif field.message_type is not None:
            inner = _field_with_bad_text(field.message_type, unknown.data)
            if inner is not None:
                return f"{field.name}.{inner}"
    return None
