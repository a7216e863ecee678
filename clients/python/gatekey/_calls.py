"""Calls as values, and how they are made."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

import grpc
from google.protobuf.message import Message

from gatekey import errors
from gatekey._connection import Endpoint
from gatekey._fork_hooks import in_forked_child
from gatekey._tokens import AsyncTokens, Metadata, Tokens

Q = TypeVar("Q", bound=Message)
R_co = TypeVar("R_co", bound=Message, covariant=True)
R = TypeVar("R", bound=Message)
Item_co = TypeVar("Item_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Method(Generic[Q, R]):
    """A unary method of the API. All of them are in `gatekey._methods`."""

    path: str
    """`/gatekey.v1.CheckService/Check`."""
    request: type[Q]
    response: type[R]


@dataclass(frozen=True, slots=True)
class Call(Generic[R_co]):
    """One call, ready to be made."""

    path: str
    """`/gatekey.v1.CheckService/Check`."""
    request: Message
    response_class: type[R_co]
    timeout: float | None = None
    """In seconds, all attempts included; None for the client's default."""
    actor: str = ""
    """The resource name of the principal on whose behalf; empty for none."""
    everywhere: bool = False
    """Whether a change returns only when no client cache decides by the state before it."""
    validate: Callable[[R_co], None] | None = None
    """Raises for a response that the caller must not get."""

    @property
    def extra(self) -> Metadata:
        """The metadata beside the token."""
        actor = (("gatekey-actor", self.actor),) if self.actor else ()
        return (*actor, ("gatekey-wait", "everywhere")) if self.everywhere else actor


@dataclass(frozen=True, slots=True)
class Listing(Generic[R_co, Item_co]):
    """A list that comes in pages."""

    first: Call[R_co]
    items: Callable[[Any], Any]
    """The items of a page."""

    def after(self, page: Message) -> Call[R_co] | None:
        """The call for what follows the page; None after the last."""
        token = cast("Any", page).next_page_token
        if not token:
            return None
        request = type(self.first.request)()
        request.CopyFrom(self.first.request)
        cast("Any", request).page_token = token
        return replace(self.first, request=request)


class Transport:
    """A connection for threads. It is opened by the first call, and again in a process that was forked."""

    def __init__(self, endpoint: Endpoint, tokens: Tokens) -> None:
        self._endpoint = endpoint
        self._tokens = tokens
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._inherited: list[grpc.Channel] = []
        self._methods: dict[str, Any] = {}
        self._closed = False
        in_forked_child(self, Transport._forget)

    def make(self, call: Call[R], timeout: float) -> R:
        """Make a call. Raises `ApiError`."""
        response: R = self._authenticated(self._method(call), call, timeout)
        if call.validate is not None:
            call.validate(response)
        return response

    def make_with_trailers(self, call: Call[R], timeout: float) -> tuple[R, dict[str, str]]:
        """Make a call, and return its response with the text in its trailing metadata. Raises `ApiError`."""
        response, ended = self._authenticated(self._method(call).with_call, call, timeout)
        if call.validate is not None:
            call.validate(response)
        return response, {key: value for key, value in ended.trailing_metadata() or () if isinstance(value, str)}

    def close(self) -> None:
        """Give up what is under way, and close the connection. It is not opened again."""
        with self._lock:
            self._closed = True
            if self._channel is not None:
                self._channel.close()
            self._channel = None

    def _authenticated(self, invoke: Callable[..., Any], call: Call[R], timeout: float) -> Any:
        ends = time.monotonic() + timeout
        metadata = self._tokens.metadata()
        try:
            return self._once(invoke, call, timeout, metadata)
        except errors.Unauthenticated:
            renewed = self._tokens.renewed(metadata)
            if renewed == metadata:
                raise
            return self._once(invoke, call, ends - time.monotonic(), renewed)

    @staticmethod
    def _once(invoke: Callable[..., Any], call: Call[R], timeout: float, metadata: Metadata) -> Any:
        try:
            return invoke(call.request, timeout=timeout, metadata=metadata + call.extra)
        except grpc.RpcError as error:
            raise errors.from_rpc(error) from None

    def _method(self, call: Call[R]) -> Any:
        channel = self._channel
        if channel is None:
            channel = self._open()
        method = self._methods.get(call.path)
        if method is None:
            serialize = type(call.request).SerializeToString
            method = channel.unary_unary(call.path, serialize, call.response_class.FromString)
            self._methods[call.path] = method
        return method

    def _open(self) -> grpc.Channel:
        with self._lock:
            if self._closed:
                raise RuntimeError("the client is closed")
            if self._channel is not None:
                return self._channel
            endpoint = self._endpoint
            if endpoint.credentials is None:
                self._channel = grpc.insecure_channel(endpoint.target, endpoint.options)
            else:
                self._channel = grpc.secure_channel(endpoint.target, endpoint.credentials, endpoint.options)
            return self._channel

    def _forget(self) -> None:
        # The connection is the parent's, who goes on using it: it is neither used nor closed here.
        if self._channel is not None:
            self._inherited.append(self._channel)
        self._channel, self._methods = None, {}
        # Another thread of the parent's may have held it, and will never release it here.
        self._lock = threading.Lock()


class AsyncTransport:
    """A connection for an event loop: the one that makes the first call."""

    def __init__(self, endpoint: Endpoint, tokens: AsyncTokens) -> None:
        self._endpoint = endpoint
        self._tokens = tokens
        self._channel: grpc.aio.Channel | None = None
        self._methods: dict[str, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def make(self, call: Call[R], timeout: float) -> R:
        """Make a call. Raises `ApiError`."""
        method = self._method(call)
        ends = time.monotonic() + timeout
        metadata = await self._tokens.metadata()
        try:
            response = await self._once(method, call, ends - time.monotonic(), metadata)
        except errors.Unauthenticated:
            renewed = await self._tokens.renewed(metadata)
            if renewed == metadata:
                raise
            response = await self._once(method, call, ends - time.monotonic(), renewed)
        if call.validate is not None:
            call.validate(response)
        return response

    async def close(self) -> None:
        """Give up what is under way, and close the connection. It is not opened again."""
        self._closed = True
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _once(self, method: Any, call: Call[R], timeout: float, metadata: Metadata) -> R:
        try:
            return cast("R", await method(call.request, timeout=timeout, metadata=metadata + call.extra))
        except grpc.aio.AioRpcError as error:
            raise errors.from_rpc(error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):
                raise errors.Cancelled("the client was closed") from None
            raise

    def _method(self, call: Call[R]) -> Any:
        channel = self._channel
        if channel is None or self._loop is not asyncio.get_running_loop():
            channel = self._open()
        method = self._methods.get(call.path)
        if method is None:
            serialize = type(call.request).SerializeToString
            method = channel.unary_unary(call.path, serialize, call.response_class.FromString)
            self._methods[call.path] = method
        return method

    def _open(self) -> grpc.aio.Channel:
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._loop is not None:
            raise RuntimeError("the client belongs to the event loop of its first call, and this is another one")
        endpoint = self._endpoint
        if endpoint.credentials is None:
            self._channel = grpc.aio.insecure_channel(endpoint.target, endpoint.options)
        else:
            self._channel = grpc.aio.secure_channel(endpoint.target, endpoint.credentials, endpoint.options)
        self._loop = asyncio.get_running_loop()
        return self._channel
