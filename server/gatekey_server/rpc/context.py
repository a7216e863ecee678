"""A call as services see it: its context, the caller's token, and the response."""

import asyncio
import hashlib
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol, Self, TypeVar, cast

import grpc
from gatekey.core.audit import AuditPosition
from gatekey.core.changes import Commit
from gatekey.core.errors import DomainError, InvalidRequest
from gatekey.core.names import ApiKeyName, PrincipalName, parse_principal_name
from gatekey.core.secrets import Secret
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from gatekey_server.authorization.callers import Caller
from gatekey_server.background.propagation_recorder import PropagationRecorder
from gatekey_server.commands.mutations import Mutation
from gatekey_server.rpc import errors
from gatekey_server.store.database import Connection

REVISION_KEY = "gatekey-revision"
RECEIPT_WAIT_KEY = "gatekey-receipt-wait-ms"

ACTOR_KEY = "gatekey-actor"
WAIT_KEY = "gatekey-wait"
_EVERYWHERE = "everywhere"

Clock = Callable[[], datetime]
Metadata = Sequence[tuple[str, str | bytes]]

R = TypeVar("R")


def utc_now() -> datetime:
    """Return the current time, by which expiry is decided."""
    return datetime.now(UTC)


class RequestContext(NamedTuple):
    """The metadata and the connection of a request."""

    metadata: Metadata
    connection: Callable[[], Mapping[str, Iterable[bytes]]] = dict
    """The transport's properties of the peer, as in grpcio's `auth_context`."""

    def values(self, name: str) -> tuple[str, ...]:
        """Return the values of one name in the metadata."""
        return tuple(str(value) for key, value in self.metadata if key == name)


class Response(NamedTuple):
    """The response to a call: bytes or an error, and trailing metadata."""

    data: bytes
    trailers: Metadata = ()
    code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""

    @classmethod
    def of(cls, error: DomainError) -> Self:
        """Return the response for an error."""
        trailers = ((errors.DETAILS_KEY, errors.details(error)),)
        return cls(b"", trailers, errors.status_code(error), errors.message(error))


class Later(NamedTuple):
    """An answer that is waiting for something, or takes long to make."""

    loading: "asyncio.Future[Any] | None"
    """To be cancelled where nobody wants the answer any more; None where nothing has to be waited for."""
    answer: Callable[[], Awaitable[Message]]
    """Makes the answer once `loading` is done, and lets others work meanwhile. Raises what the method does."""


@dataclass(frozen=True, slots=True)
class Token:
    """A service token before its lookup: the digests of the presented text, or those of a certificate's key."""

    digests: Secret
    key: ApiKeyName | None = None
    """The key that a certificate stands for."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an identified caller."""

    caller: Caller
    identify_again: Callable[[Connection], Awaitable[Caller]]
    """Returns the caller as of a transaction. Raises `Unauthenticated` (`TOKEN_INVALID`)."""
    method: MethodDescriptor
    actors: tuple[str, ...]
    """The values of the metadata `gatekey-actor`."""
    waits: tuple[str, ...]
    """The values of the metadata `gatekey-wait`."""
    recorder: PropagationRecorder
    trailers: list[tuple[str, str]] = field(default_factory=list)
    """The trailing metadata of the response."""

    def mutation(self, request: Message, write: Callable[[R], Message]) -> Mutation[R]:
        """Return the options of a mutation, from the request and its metadata.

        `write` makes the response, which is stored for repetitions.

        Raises `InvalidRequest` (`REQUEST_ID_INVALID`, `NAME_INVALID`, `WAIT_INVALID`).
        """
        fields = cast("MutationRequest", request)
        if not set(self.waits) <= {_EVERYWHERE}:
            raise InvalidRequest.at(WAIT_KEY, "WAIT_INVALID", f"is not `{_EVERYWHERE}`")
        return Mutation(
            caller=self.caller,
            identify_again=self.identify_again,
            verb=self.method.name,
            actor=self._actor(),
            validate_only=fields.validate_only,
            request_id=_read_request_id(fields.request_id),
            fingerprint=self._fingerprint(request),
            serialize_response=lambda result: write(result).SerializeToString(),
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
            raise InvalidRequest.at(ACTOR_KEY, "NAME_INVALID", "there is more than one")
        return parse_principal_name(self.actors[0], ACTOR_KEY)

    def _fingerprint(self, request: Message) -> bytes:
        text = repr((self.method.full_name, self.actors, request.SerializeToString(deterministic=True)))
        return hashlib.sha256(text.encode()).digest()


class MutationRequest(Protocol):
    """The fields that the requests of all mutations have."""

    request_id: str
    validate_only: bool


def _read_request_id(text: str) -> uuid.UUID | None:
    if not text:
        return None
    try:
        return uuid.UUID(text)
    except ValueError:
        raise InvalidRequest.at("request_id", "REQUEST_ID_INVALID", "is not a UUID") from None
