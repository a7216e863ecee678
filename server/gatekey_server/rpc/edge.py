"""What happens around every RPC: decoding, the caller's token, and errors.

Servicers are plain classes with one coroutine function for each method of their service. They are
registered from the service's descriptor, so that no method can be left without the edge, and none
of them sees a request whose caller is not known.
"""

import hashlib
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, Protocol, TypeVar, cast

import grpc
import structlog
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

from gatekey_server.commands import callers
from gatekey_server.commands.callers import Caller
from gatekey_server.commands.events import Place
from gatekey_server.commands.mutations import Mutation, Replayed
from gatekey_server.commands.receipts import ReceiptBook
from gatekey_server.commands.usage import UsageRecorder
from gatekey_server.domain.errors import GatekeyError, InvalidRequest, Unauthenticated, Unavailable
from gatekey_server.domain.names import PrincipalName, parse_principal_name
from gatekey_server.domain.secrets import Keyring
from gatekey_server.freshness.facts import FactSource, Secret
from gatekey_server.rpc import errors, tls
from gatekey_server.rpc.tls import CertificateCallers

MAX_REQUEST_BYTES = 1 << 20
# Beyond this the transport refuses a message before it is read, with a status but without details.
MAX_TRANSPORT_BYTES = 4 << 20

REVISION_KEY = "gatekey-revision"
RECEIPT_WAIT_KEY = "gatekey-receipt-wait-ms"

_SCHEME = "bearer "
_ACTOR = "gatekey-actor"

Context = grpc.aio.ServicerContext[Any, Any]
Clock = Callable[[], datetime]
Method = Callable[[Any, Any], Awaitable[Message]]

_log = structlog.get_logger()
T = TypeVar("T")
R = TypeVar("R")


def utc_now() -> datetime:
    """The time of day, as expiry is judged by it."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Malformed:
    """Stands in for a request that could not be decoded."""

    error: InvalidRequest


@dataclass(frozen=True, slots=True)
class Token:
    """A service token, not yet looked up: as it was presented, hashed, or the one that a certificate stands for."""

    digests: Secret


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a caller who is known."""

    caller: Caller
    method: MethodDescriptor
    actors: tuple[str, ...]
    """The values of the metadata `gatekey-actor`."""
    book: ReceiptBook
    trailers: list[tuple[str, str]] = field(default_factory=list)
    """The metadata that goes back with the answer."""

    def mutation(self, request: Message, answer: Callable[[R], Message]) -> Mutation[R]:
        """What the request says about how to carry it out; `answer` writes what repetitions are answered.

        Raises `InvalidRequest` (`REQUEST_ID_INVALID`, `NAME_INVALID`).
        """
        wish = cast("MutationRequest", request)
        return Mutation(
            caller=self.caller,
            verb=self.method.name,
            actor=self._actor(),
            validate_only=wish.validate_only,
            request_id=_read_request_id(wish.request_id),
            fingerprint=self._fingerprint(request),
            answer=lambda result: answer(result).SerializeToString(),
            settle=self._settle,
        )

    async def _settle(self, revision: int, event: Place | None, *, wait: bool) -> None:
        self.trailers.append((REVISION_KEY, str(revision)))
        if wait:
            waited = await self.book.settle(revision, event)
            self.trailers.append((RECEIPT_WAIT_KEY, str(round(waited / timedelta(milliseconds=1)))))

    def _actor(self) -> PrincipalName | None:
        if not self.actors:
            return None
        if len(self.actors) > 1:
            raise InvalidRequest.at(_ACTOR, "NAME_INVALID", "there is more than one")
        return parse_principal_name(self.actors[0], _ACTOR)

    def _fingerprint(self, request: Message) -> bytes:
        text = repr((self.method.full_name, self.actors, request.SerializeToString(deterministic=True)))
        return hashlib.sha256(text.encode()).digest()


class MutationRequest(Protocol):
    """What the requests of all mutations have."""

    request_id: str
    validate_only: bool


def _read_request_id(text: str) -> uuid.UUID | None:
    if not text:
        return None
    try:
        return uuid.UUID(text)
    except ValueError:
        raise InvalidRequest.at("request_id", "REQUEST_ID_INVALID", "is not a UUID") from None


class Edge:
    """Wraps methods of servicers into handlers of gRPC."""

    def __init__(
        self,
        facts: FactSource,
        keyring: Keyring,
        clock: Clock,
        certificate_callers: CertificateCallers,
        usage: UsageRecorder,
        book: ReceiptBook,
    ) -> None:
        self._facts = facts
        self._keyring = keyring
        self._clock = clock
        self._certificate_callers = certificate_callers
        self._usage = usage
        self._book = book

    def register(self, server: grpc.aio.Server, service: ServiceDescriptor, servicer: object) -> None:
        """Serve all methods of a service; each gets the request and the `Call`."""
        self._register(server, service, servicer, self._call)

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
        identify: Callable[[MethodDescriptor, Context], Awaitable[T]],
    ) -> None:
        handlers = {
            method.name: grpc.unary_unary_rpc_method_handler(
                _handler(method, getattr(servicer, method.name), identify),
                request_deserializer=_decoder(method.input_type),
                response_serializer=GetMessageClass(method.output_type).SerializeToString,
            )
            for method in service.methods
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))

    async def _token(self, _: MethodDescriptor, context: Context) -> Token:
        values = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        if not values and self._certificate_callers:
            return await self._certificate_token(context)
        if not values:
            raise Unauthenticated("TOKEN_MISSING", "the metadata `authorization: Bearer <service token>` is required")
        if len(values) > 1:
            raise Unauthenticated("TOKEN_INVALID", "there is more than one `authorization`")
        text = values[0] if isinstance(values[0], str) else ""
        if not text.lower().startswith(_SCHEME):
            raise Unauthenticated("TOKEN_INVALID", "`authorization` is not of the form `Bearer <service token>`")
        return Token(self._keyring.digests(text[len(_SCHEME) :].strip()))

    async def _certificate_token(self, context: Context) -> Token:
        key = tls.caller_of(context.auth_context(), self._certificate_callers)
        digests = await self._facts.digests_of(key)
        if not digests:
            raise Unauthenticated("TOKEN_INVALID", f"the client certificate stands for {key}, which is no more")
        return Token(digests)

    async def _call(self, method: MethodDescriptor, context: Context) -> Call:
        token = await self._token(method, context)
        known = await self._facts.get(token.digests)
        caller = callers.identify(known.fact, self._clock())
        self._usage.record(caller.fact, caller.now)
        actors = tuple(str(value) for key, value in context.invocation_metadata() or () if key == _ACTOR)
        return Call(caller, method, actors, self._book)


def _handler(
    descriptor: MethodDescriptor, method: Method, identify: Callable[[MethodDescriptor, Context], Awaitable[T]]
) -> Callable[[Message | Malformed, Context], Awaitable[Message]]:
    name, answer_class = descriptor.full_name, GetMessageClass(descriptor.output_type)

    async def handle(request: Message | Malformed, context: Context) -> Message:
        try:
            # The token first: to whoever has none, a bad request tells nothing.
            identity = await identify(descriptor, context)
            if isinstance(request, Malformed):
                raise request.error
            try:
                return await method(request, identity)
            except Replayed as replayed:
                return answer_class.FromString(replayed.answer)
            finally:
                if isinstance(identity, Call) and identity.trailers:
                    context.set_trailing_metadata(tuple(identity.trailers))
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
