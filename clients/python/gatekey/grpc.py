"""Checks of keys for gRPC servers::

    needs = {
        "/shop.v1.Links/GetLink": Requirement("links/{link_id}", "read"),
        "/grpc.health.v1.Health/*": None,
    }
    interceptor = KeyInterceptor(gatekey.Client(), needs, product="heyoo")
    interceptor.verify()
    server = grpc.server(pool, interceptors=[interceptor])

In a method, `current_decision()` returns the decision about its call.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor

from gatekey import _protection, _status, errors
from gatekey._products import AsyncInquirer, GuardedProduct, Inquirer
from gatekey._protection import AccessRefused, Credential
from gatekey.client import AsyncClient, Client
from gatekey.decisions import Decision, Question

__all__ = ["AsyncKeyInterceptor", "Credential", "KeyInterceptor", "Requirement", "current_decision"]

T = TypeVar("T")

Requirement = _protection.Requirement[Any]
"""`{name}` in it stands for a field of the request message."""

_DECISION: ContextVar[Decision | None] = ContextVar("gatekey_decision", default=None)


def current_decision() -> Decision:
    """Return the decision about the call that is being served. Raises `LookupError` if its key was not checked."""
    decision = _DECISION.get()
    if decision is None:
        raise LookupError("the call's key was not checked")
    return decision


class _Guard:
    """The requirements of calls, and the question to ask about a call."""

    def __init__(
        self, requirements: Mapping[str, Requirement | None], product: str | None, credential: Credential | None
    ) -> None:
        for method, requirement in requirements.items():
            if requirement is not None:
                _check_fields(method, requirement)
        self._requirements = dict(requirements)
        self.product = GuardedProduct(product, credential)
        self.product.requirements += [requirement for requirement in requirements.values() if requirement is not None]

    def is_open(self, method: str) -> bool:
        """Return whether anybody may call the method. A method without an entry is not open."""
        return self._requirement(method, "") is None

    def question(self, method: str, request: Any, context: Any) -> Question:
        """Return the question about a call; a stream has no message yet. Raises `AccessRefused` and `InvalidPath`."""
        requirement = self._requirement(method, None)
        if requirement is None:
            raise AccessRefused(403, "METHOD_UNKNOWN", f"it is not known what {method} needs")
        credential = self.product.credential()
        values = [str(value) for name, value in context.invocation_metadata() or () if name == credential.header]
        key = credential.key_in(values)

        def id_in(name: str) -> object:
            value = getattr(request, name, None)
            return value if isinstance(value, str | int) and not isinstance(value, bool) else None

        return _protection.question(requirement, request, id_in, key, self.product.id, self.product.faults)

    def _requirement(self, method: str, default: T) -> Requirement | T | None:
        of_service = self._requirements.get(f"{method.rpartition('/')[0]}/*", default)
        return self._requirements.get(method, of_service)


def _check_fields(path: str, requirement: Requirement) -> None:
    """Raise `ValueError` if a template names a field that the method's request lacks, if its descriptor is loaded."""
    service_name, _, method_name = path.removeprefix("/").rpartition("/")
    try:
        service = descriptor_pool.Default().FindServiceByName(service_name)
    except KeyError:
        return
    methods = service.methods_by_name
    if method_name != "*" and method_name not in methods:
        raise ValueError(f"{path}: the service has no such method")
    for method in methods.values() if method_name == "*" else [methods[method_name]]:
        for name in sorted(requirement.fields):
            field = method.input_type.fields_by_name.get(name)
            if method.client_streaming or field is None or field.type not in _ID_TYPES:
                raise ValueError(
                    f"{path}: {requirement} takes an id from `{name}`, which is no field of {method.name}'s request"
                )


_ID_TYPES = {
    FieldDescriptor.TYPE_STRING,
    *(
        getattr(FieldDescriptor, f"TYPE_{kind}{bits}")
        for kind in ("INT", "UINT", "SINT", "FIXED", "SFIXED")
        for bits in (32, 64)
    ),
}


def _details(refusal: AccessRefused) -> tuple[tuple[str, bytes], ...]:
    metadata = {}
    for missing in refusal.missing_permissions:
        metadata = {"resource": missing.resource, "action": missing.action}
    code = refusal.code.value[0]
    return ((_status.KEY, _status.write(code, refusal.message, "gatekey", refusal.reason, metadata)),)


class KeyInterceptor(grpc.ServerInterceptor):
    """Serves only calls whose key meets the requirement of their method; for servers with threads.

    - `requirements`: the requirement of each method, by its path, `/package.Service/Method` or `/package.Service/*`;
      None: the method needs no key. A method without an entry is refused.
    - `product`: the id of the product whose keys are accepted. Required if the client's token may check several.
    - `credential`: where keys are presented. By default the server returns it from the product's spec.

    Raises `ValueError` if a template names something that is no field of its method's request.
    """

    def __init__(
        self,
        client: Client,
        requirements: Mapping[str, Requirement | None],
        *,
        product: str | None = None,
        credential: Credential | None = None,
    ) -> None:
        self._client = client
        self._guard = _Guard(requirements, product, credential)
        self._inquirer = Inquirer(client, self._guard.product)

    def verify(self) -> None:
        """Verify before the first call that calls can be served. Call it when a service starts.

        It verifies the requirements against the product's spec, and that the client's token may check the product.
        Raises `Misconfigured`. If no server responds, it logs that, and calls are refused until a server responds.
        """
        self._guard.product.verify(self._inquirer.ask())

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See `grpc.ServerInterceptor`."""
        handler = continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or self._guard.is_open(method):
            return handler
        behavior = _behavior(handler)

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            _DECISION.set(self._admit(method, None if handler.request_streaming else request, context))
            try:
                return behavior(request, context)
            finally:
                # The thread serves other calls next.
                _DECISION.set(None)

        def answers(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            _DECISION.set(self._admit(method, None if handler.request_streaming else request, context))
            try:
                yield from behavior(request, context)
            finally:
                _DECISION.set(None)

        return _replaced(handler, answers if handler.response_streaming else answer)

    def _admit(self, method: str, request: Any, context: grpc.ServicerContext) -> Decision:
        try:
            self._inquirer.keep_up()
            asked = self._guard.question(method, request, context)
            decision = self._client.check(
                asked.key, asked.resource, asked.action, tenant=asked.tenant, product=asked.product
            )
            return _protection.ensure_allowed(decision)
        except errors.ApiError as error:
            refusal = _protection.refusal_for(error)
        except AccessRefused as error:
            refusal = error
        context.set_trailing_metadata(_details(refusal))
        return context.abort(refusal.code, refusal.message)


class AsyncKeyInterceptor(grpc.aio.ServerInterceptor):
    """The same as `KeyInterceptor`, for servers with an event loop, whose methods are coroutines."""

    def __init__(
        self,
        client: AsyncClient,
        requirements: Mapping[str, Requirement | None],
        *,
        product: str | None = None,
        credential: Credential | None = None,
    ) -> None:
        self._client = client
        self._guard = _Guard(requirements, product, credential)
        self._inquirer = AsyncInquirer(client, self._guard.product)

    async def verify(self) -> None:
        """See `KeyInterceptor.verify`."""
        self._guard.product.verify(await self._inquirer.ask())

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See `grpc.aio.ServerInterceptor`."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or self._guard.is_open(method):
            return handler
        behavior = _behavior(handler)

        async def answer(request: Any, context: Any) -> Any:
            _DECISION.set(await self._admit(method, None if handler.request_streaming else request, context))
            return await behavior(request, context)

        async def answers(request: Any, context: Any) -> AsyncIterator[Any]:
            _DECISION.set(await self._admit(method, None if handler.request_streaming else request, context))
            async for each in behavior(request, context):
                yield each

        # A method that responds with a stream may also write the messages to its context.
        return _replaced(handler, answers if inspect.isasyncgenfunction(behavior) else answer)

    async def _admit(self, method: str, request: Any, context: Any) -> Decision:
        try:
            await self._inquirer.keep_up()
            asked = self._guard.question(method, request, context)
            decision = await self._client.check(
                asked.key, asked.resource, asked.action, tenant=asked.tenant, product=asked.product
            )
            return _protection.ensure_allowed(decision)
        except errors.ApiError as error:
            refusal = _protection.refusal_for(error)
        except AccessRefused as error:
            refusal = error
        await context.abort(refusal.code, refusal.message, _details(refusal))
        raise AssertionError


def _behavior(handler: grpc.RpcMethodHandler[Any, Any]) -> Callable[[Any, Any], Any]:
    return getattr(handler, _kind(handler))  # type: ignore[no-any-return]


def _replaced(
    handler: grpc.RpcMethodHandler[Any, Any], behavior: Callable[[Any, Any], Any]
) -> grpc.RpcMethodHandler[Any, Any]:
    make = getattr(grpc, f"{_kind(handler)}_rpc_method_handler")
    return make(behavior, handler.request_deserializer, handler.response_serializer)  # type: ignore[no-any-return]


def _kind(handler: grpc.RpcMethodHandler[Any, Any]) -> str:
    return "_".join(
        "stream" if streams else "unary" for streams in (handler.request_streaming, handler.response_streaming)
    )
