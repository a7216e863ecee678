"""What happens around every RPC: the caller's token, decoding, and errors.

Servicers are plain classes with one coroutine function for each method of their service. They are
registered from the service's descriptor, so that no method can be left without the edge, and none
of them sees a request whose caller is not known. What comes out are endpoints, which the transport
serves: it identifies the caller by the metadata, and only then receives the request.
"""

import asyncio
import hashlib
import os
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, Protocol, Self, TypeVar, cast

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from gatekey_server.commands import callers
from gatekey_server.commands.callers import Caller
from gatekey_server.commands.events import AuditPosition
from gatekey_server.commands.mutations import Mutation, Replayed
from gatekey_server.commands.propagation import PropagationRecorder
from gatekey_server.commands.usage import UsageRecorder
from gatekey_server.domain.changes import Commit
from gatekey_server.domain.errors import GatekeyError, InvalidRequest, Unauthenticated, Unavailable
from gatekey_server.domain.names import ApiKeyName, PrincipalName, parse_principal_name
from gatekey_server.domain.secrets import Keyring, Secret
from gatekey_server.freshness.snapshot_source import SnapshotSource
from gatekey_server.rpc import decoding, errors, tls
from gatekey_server.rpc.repeats import Recent
from gatekey_server.rpc.tls import CertificateCallers
from gatekey_server.store import pauses
from gatekey_server.store.database import Connection

MAX_TOKENS = 10_000
"""Tokens whose digests are remembered, by a keyed hash."""

REVISION_KEY = "gatekey-revision"
RECEIPT_WAIT_KEY = "gatekey-receipt-wait-ms"

_SCHEME = "bearer "
_ACTOR = "gatekey-actor"
_WAIT = "gatekey-wait"
_EVERYWHERE = "everywhere"

Clock = Callable[[], datetime]
Method = Callable[[Any, Any], Awaitable[Message]]
Metadata = Sequence[tuple[str, str | bytes]]

_log = structlog.get_logger()
R = TypeVar("R")


def utc_now() -> datetime:
    """The time of day, as expiry is judged by it."""
    return datetime.now(UTC)


class RequestContext(NamedTuple):
    """What came with a request."""

    metadata: Metadata
    connection: Callable[[], Mapping[str, Iterable[bytes]]] = dict
    """What the transport tells of the other end of the connection, as grpcio's `auth_context` does."""


class Response(NamedTuple):
    """What goes back."""

    data: bytes
    trailers: Metadata = ()
    code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""

    @classmethod
    def of(cls, error: GatekeyError) -> Self:
        """Say that something is refused."""
        trailers = ((errors.DETAILS_KEY, errors.details(error)),)
        return cls(b"", trailers, errors.status_code(error), errors.message(error))


class Later(NamedTuple):
    """An answer that is waiting for something, or takes long to make."""

    loading: "asyncio.Future[Any] | None"
    """To be cancelled where nobody wants the answer any more; None where nothing has to be waited for."""
    answer: Callable[[], Awaitable[Message]]
    """Makes the answer once `loading` is done, and lets others work meanwhile. Raises what the method does."""


MethodAtOnce = Callable[[bytes, str], bytes | Later | None]


@dataclass(frozen=True, slots=True)
class Token:
    """A service token, not yet looked up: as it was presented, hashed, or the one that a certificate stands for."""

    digests: Secret
    key: ApiKeyName | None = None
    """The key that a certificate stands for."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a caller who is known."""

    caller: Caller
    identify_again: Callable[[Connection], Awaitable[Caller]]
    """Identifies the caller in a transaction. Raises `Unauthenticated` (`TOKEN_INVALID`)."""
    method: MethodDescriptor
    actors: tuple[str, ...]
    """The values of the metadata `gatekey-actor`."""
    waits: tuple[str, ...]
    """The values of the metadata `gatekey-wait`."""
    recorder: PropagationRecorder
    trailers: list[tuple[str, str]] = field(default_factory=list)
    """The metadata that goes back with the answer."""

    def mutation(self, request: Message, answer: Callable[[R], Message]) -> Mutation[R]:
        """What the request says about how to carry it out; `answer` writes what repetitions are answered.

        Raises `InvalidRequest` (`REQUEST_ID_INVALID`, `NAME_INVALID`, `WAIT_INVALID`).
        """
        wish = cast("MutationRequest", request)
        if not set(self.waits) <= {_EVERYWHERE}:
            raise InvalidRequest.at(_WAIT, "WAIT_INVALID", f"is not `{_EVERYWHERE}`")
        return Mutation(
            caller=self.caller,
            identify_again=self.identify_again,
            verb=self.method.name,
            actor=self._actor(),
            validate_only=wish.validate_only,
            request_id=_read_request_id(wish.request_id),
            fingerprint=self._fingerprint(request),
            answer=lambda result: answer(result).SerializeToString(),
            wait_until_visible=self._wait_until_visible,
        )

    async def _wait_until_visible(self, commit: Commit, event: AuditPosition | None, *, wait: bool) -> None:
        self.trailers.append((REVISION_KEY, str(commit.position.revision)))
        if wait:
            waited = await self.recorder.wait_until_visible(commit, event, everywhere=bool(self.waits))
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


class Dispatcher:
    """Wraps methods of servicers into handlers of gRPC."""

    def __init__(
        self,
        snapshots: SnapshotSource,
        keyring: Keyring,
        clock: Clock,
        certificate_callers: CertificateCallers,
        usage: UsageRecorder,
        recorder: PropagationRecorder,
    ) -> None:
        self._snapshots = snapshots
        self._keyring = keyring
        self._clock = clock
        self._certificate_callers = certificate_callers
        self._usage = usage
        self._recorder = recorder
        self._hash_key = os.urandom(32)
        self._tokens = Recent[Token](MAX_TOKENS)
        self.endpoints: dict[str, Endpoint] = {}
        """By the path of the method."""

    def register(self, service: ServiceDescriptor, servicer: object) -> None:
        """Add all methods of a service; each gets the request and the `Call`."""
        self._register(service, servicer, self._call)

    def register_unidentified(
        self, service: ServiceDescriptor, servicer: object, at_once: Mapping[str, MethodAtOnce]
    ) -> None:
        """Add all methods of a service; each gets the request and the `Token`, and identifies the caller itself.

        For methods that look up the caller together with what the request is about. Those in
        `at_once` are tried first, with the bytes of the request and the value of `authorization`:
        they answer None where the method itself has to be called.
        """
        self._register(service, servicer, self._token, at_once)

    def _register(
        self,
        service: ServiceDescriptor,
        servicer: object,
        identify: Callable[[MethodDescriptor, RequestContext], Awaitable[Any]],
        at_once: Mapping[str, MethodAtOnce] | None = None,
    ) -> None:
        for method in service.methods:
            path, sooner = f"/{service.full_name}/{method.name}", (at_once or {}).get(method.name)
            knows = self._knows if sooner is not None else None
            self.endpoints[path] = Endpoint(method, getattr(servicer, method.name), identify, knows, sooner)

    def token_of(self, authorization: str) -> Token:
        """The token that is presented by a value of `authorization`. Raises `Unauthenticated` (`TOKEN_INVALID`)."""
        name = hashlib.blake2b(authorization.encode(), digest_size=16, key=self._hash_key).digest()
        token = self._tokens.get(name)
        if token is None:
            if not authorization[: len(_SCHEME)].lower() == _SCHEME:
                raise Unauthenticated("TOKEN_INVALID", "`authorization` is not of the form `Bearer <service token>`")
            # Nothing but spaces: what else looks like one would make another text of the same token.
            token = Token(self._keyring.digests(authorization[len(_SCHEME) :].strip(" ")))
            self._tokens.put(name, token)
        return token

    def _knows(self, authorization: str) -> bool:
        """Whether a token is remembered, and works."""
        known = self._snapshots.recall(self.token_of(authorization).digests)
        if known is None:
            return False
        callers.identify(known, self._clock())
        return True

    async def _token(self, _: MethodDescriptor, context: RequestContext) -> Token:
        token = await self._presented(context)
        callers.identify(await self._snapshots.get(token.digests), self._clock())
        return token

    async def _presented(self, context: RequestContext) -> Token:
        values = [value for key, value in context.metadata if key == "authorization"]
        if not values and self._certificate_callers:
            return await self._certificate_token(context)
        if not values:
            raise Unauthenticated("TOKEN_MISSING", "the metadata `authorization: Bearer <service token>` is required")
        if len(values) > 1:
            raise Unauthenticated("TOKEN_INVALID", "there is more than one `authorization`")
        return self.token_of(str(values[0]))

    async def _certificate_token(self, context: RequestContext) -> Token:
        key = tls.caller_of(context.connection(), self._certificate_callers)
        digests = await self._snapshots.digests_of(key)
        if not digests:
            raise Unauthenticated("TOKEN_INVALID", f"the client certificate stands for {key}, which is no more")
        return Token(digests, key)

    async def _call(self, method: MethodDescriptor, context: RequestContext) -> Call:
        token = await self._presented(context)
        caller = callers.identify(await self._snapshots.get(token.digests), self._clock())
        self._usage.record(caller.snapshot, caller.now)
        again = partial(self._identify_again, token)
        return Call(caller, again, method, _values(context, _ACTOR), _values(context, _WAIT), self._recorder)

    async def _identify_again(self, token: Token, connection: Connection) -> Caller:
        digests = token.digests
        if token.key is not None:
            # A certificate stands for a key, whose secrets may have been exchanged.
            digests = await self._snapshots.digests_of_within(connection, token.key)
        return callers.identify(await self._snapshots.get_within(connection, digests), self._clock())


def _values(context: RequestContext, name: str) -> tuple[str, ...]:
    return tuple(str(value) for key, value in context.metadata if key == name)


class Endpoint:
    """One method. A call is identified first, by its metadata; then its request is received and answered."""

    def __init__(
        self,
        method: MethodDescriptor,
        answer: Method,
        identify: Callable[[MethodDescriptor, RequestContext], Awaitable[Any]],
        knows: Callable[[str], bool] | None,
        at_once: MethodAtOnce | None,
    ) -> None:
        self._method = method
        self._answer = answer
        self._identify = identify
        self._knows = knows
        self._at_once = at_once
        self._request_class = GetMessageClass(method.input_type)
        self._answer_class = GetMessageClass(method.output_type)
        self.max_bytes = decoding.max_bytes(method.full_name)
        """How many bytes a request may have."""

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
        """Find out who calls, before there is a request; a `Response` where that is an error."""
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
        except Exception:  # noqa: BLE001 - whatever it is, `answer` meets it again and says it
            return None

    async def answer(self, data: bytes, identity: Any) -> Response:
        """Answer the request of a caller that was identified; errors are replies, too."""
        try:
            return await self._try_to_answer(data, identity)
        except Exception as error:  # noqa: BLE001 - as above
            return self._refuse(error)

    async def answer_later(self, later: Later) -> Response:
        """The answer that was waiting, now that it need not wait any more."""
        try:
            return Response((await later.answer()).SerializeToString())
        except Exception as error:  # noqa: BLE001 - as above
            return self._refuse(error)

    def _refuse(self, error: Exception) -> Response:
        if not isinstance(error, GatekeyError):
            _log.error("rpc.failed", method=self._method.full_name, error=type(error).__name__, exc_info=error)
            return Response(b"", (), grpc.StatusCode.INTERNAL, "internal error")
        if isinstance(error, Unavailable):
            cause = repr(error.__cause__)
            _log.warning("rpc.unavailable", method=self._method.full_name, reason=error.reason, cause=cause)
        return Response.of(error)

    async def _try_to_answer(self, data: bytes, identity: Any) -> Response:
        if len(data) > self.max_bytes:
            raise InvalidRequest("REQUEST_TOO_LARGE", f"the request has more than {self.max_bytes} bytes")
        is_large = len(data) > decoding.MAX_UNSEEN_BYTES
        # To decode it takes some milliseconds.
        if is_large:
            await pauses.pause()
        request = decoding.decode(self._request_class, data)
        if is_large:
            await pauses.pause()
        try:
            message = await self._answer(request, identity)
        except Replayed as replayed:
            message = self._answer_class.FromString(replayed.answer)
        return Response(message.SerializeToString(), tuple(identity.trailers) if isinstance(identity, Call) else ())
