"""Clients for threads and for event loops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from google.protobuf.message import Message

from gatekey import _administration as administration
from gatekey import _connection as connection
from gatekey import _methods as methods
from gatekey import decisions, errors
from gatekey._batching import Batcher
from gatekey._cache.options import Cache, make_cache
from gatekey._cache.runner import AsyncCacheRunner, CacheRunner
from gatekey._calls import AsyncTransport, Call, Listing, Transport
from gatekey._connection import TLS, Timeouts
from gatekey._faults import FaultLog
from gatekey._tokens import AsyncTokens, AsyncTokenSource, Tokens, TokenSource
from gatekey.decisions import CheckFailed, Decision, Question
from gatekey.v1 import check_service_pb2 as pb

R = TypeVar("R", bound=Message)
Item = TypeVar("Item")


def _check(request: pb.CheckRequest) -> Call[pb.CheckResponse]:
    return Call(methods.CHECK.path, request, pb.CheckResponse)


def _batch_check(requests: Sequence[pb.CheckRequest]) -> Call[pb.BatchCheckResponse]:
    return Call(methods.BATCH_CHECK.path, pb.BatchCheckRequest(checks=requests), pb.BatchCheckResponse)


def _check_config(product: str | None) -> Call[pb.CheckConfig]:
    request = pb.GetCheckConfigRequest(name=f"products/{product or '-'}/checkConfig")
    return Call(methods.GET_CHECK_CONFIG.path, request, pb.CheckConfig)


def _batches(written: Iterable[pb.CheckRequest | Decision | CheckFailed]) -> Iterator[list[pb.CheckRequest]]:
    return decisions.batches((each for each in written if isinstance(each, pb.CheckRequest)), pb.CheckRequest.ByteSize)


class Client(administration.Administration[administration.Caller]):
    """A client of Gatekey for threads. It checks whether holders of keys may do an action, and administers Gatekey.

    A program needs one client. It is safe to use from many threads. It opens its connection with the first call, and
    another one in a forked process. Close it, or use it in a `with`.

    - `address`: `HOST:PORT`; the client uses all addresses of the host in turn. Or several IP addresses. Default:
      `GATEKEY_ADDRESS`, or else `127.0.0.1:50051`.
    - `token`: the service token, or a callable that returns it. The client calls it again when the token is refused.
      Default: `GATEKEY_TOKEN`. Optional with a client certificate.
    - `tls`: default: from `GATEKEY_CA`, `GATEKEY_CLIENT_CERTIFICATE` and `GATEKEY_CLIENT_KEY`.
    - `insecure`: call other machines in plain text.
    - `cache`: decide checks in the client, by snapshots that are certain to be current.
    - `timeout`, `admin_timeout`: the deadline in seconds of a check, and of any other call, all attempts included.

    Raises `ValueError` for unusable arguments and files.
    """

    def __init__(
        self,
        address: str | Sequence[str] | None = None,
        *,
        token: TokenSource | None = None,
        tls: TLS | None = None,
        insecure: bool = False,
        timeout: float = connection.CHECK_S,
        admin_timeout: float = connection.ADMIN_S,
        cache: bool | Cache = False,
    ) -> None:
        endpoint = connection.find_endpoint(address, tls, insecure=insecure)
        self._transport = Transport(endpoint, Tokens(token, optional=endpoint.token_optional))
        sync = make_cache(cache)
        self._local_cache = sync.local_cache if sync is not None else None
        self._runner = CacheRunner(sync, self._transport) if sync is not None else None
        self._timeouts = Timeouts(timeout, admin_timeout)
        self._faults = FaultLog()

    def check(
        self,
        key: str,
        resource: str,
        action: str,
        *,
        tenant: str | None = None,
        product: str | None = None,
        min_revision: int = 0,
        timeout: float | None = None,
    ) -> Decision:
        """Return the decision whether the holder of the key may do the action on the resource.

        A denial is a decision too. Raises `ApiError` if no decision was made; treat it as a denial.
        """
        if self._local_cache is not None and self._runner is not None:
            decision = self._local_cache.recall(key, resource, action, tenant, product, min_revision)
            if decision is not None:
                return decision if decision.allowed else self._faults.note(decision, resource, action)
            self._runner.want(key)
        request = decisions.write(key, resource, action, tenant, product, min_revision)
        ends = time.monotonic() + self._check_s(timeout)
        decision = decisions.read(self._transport.make(_check(request), self._check_s(timeout)))
        if product is not None and self._faults.is_doubtful(decision, product):
            self._look_at(product, ends - time.monotonic())
        return self._faults.note(decision, resource, action)

    def require(
        self,
        key: str,
        resource: str,
        action: str,
        *,
        tenant: str | None = None,
        product: str | None = None,
        min_revision: int = 0,
        timeout: float | None = None,
    ) -> Decision:
        """Return the decision as `check` does, but raise `AccessDenied` for a denial."""
        return self.check(
            key, resource, action, tenant=tenant, product=product, min_revision=min_revision, timeout=timeout
        ).require()

    def check_many(
        self, questions: Iterable[Question], *, timeout: float | None = None
    ) -> list[Decision | CheckFailed]:
        """Return the results of many questions, in their order.

        The result of a question that cannot be decided is a `CheckFailed`; the others are not affected. Raises
        `ApiError` if nothing can be decided.
        """
        asked = list(questions)
        written = [_recall_or_write(self._runner, question) for question in asked]
        ends = time.monotonic() + self._check_s(timeout)
        results: list[Decision | CheckFailed] = []
        for batch in _batches(written):
            answer = self._transport.make(_batch_check(batch), ends - time.monotonic())
            results += decisions.read_results(answer, len(batch))
        return self._faults.note_all(asked, decisions.merge(written, results))

    def check_config(self, product: str | None = None, *, timeout: float | None = None) -> pb.CheckConfig:
        """Return the resources and actions of a product that can be checked, and where holders present their keys.

        Call it when a service starts, to learn whether the token may check the product's keys. The default product is
        the only one that the token may check. Raises `ApiError`.
        """
        return self._transport.make(_check_config(product), self._check_s(timeout))

    def close(self) -> None:
        """Close the connection. A closed client makes no more calls."""
        if self._runner is not None:
            self._runner.close()
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _look_at(self, product: str, timeout: float) -> None:
        try:
            self.check_config(product, timeout=timeout)
        except errors.ApiError as error:
            self._faults.refuted(product, error)

    def _check_s(self, timeout: float | None) -> float:
        return self._timeouts.check if timeout is None else timeout

    def _make(self, call: Call[R]) -> R:
        return self._transport.make(call, self._timeouts.admin if call.timeout is None else call.timeout)

    def _list(self, listing: Listing[Any, Item]) -> Iterator[Item]:
        call: Call[Any] | None = listing.first
        while call is not None:
            page = self._make(call)
            yield from listing.items(page)
            call = listing.after(page)


class AsyncClient(administration.Administration[administration.AsyncCaller]):
    """The same as `Client`, for an event loop: the loop in which the first call is made.

    - `token` may also be a coroutine function.
    - `batch`: send the checks of one tick of the event loop as one call.
    """

    def __init__(
        self,
        address: str | Sequence[str] | None = None,
        *,
        token: AsyncTokenSource | None = None,
        tls: TLS | None = None,
        insecure: bool = False,
        timeout: float = connection.CHECK_S,
        admin_timeout: float = connection.ADMIN_S,
        batch: bool = True,
        cache: bool | Cache = False,
    ) -> None:
        endpoint = connection.find_endpoint(address, tls, insecure=insecure)
        self._transport = AsyncTransport(endpoint, AsyncTokens(token, optional=endpoint.token_optional))
        sync = make_cache(cache)
        self._local_cache = sync.local_cache if sync is not None else None
        self._runner = AsyncCacheRunner(sync, self._transport) if sync is not None else None
        self._timeouts = Timeouts(timeout, admin_timeout)
        self._faults = FaultLog()
        self._batcher = Batcher(self._ask_many) if batch else None
        self._looking: asyncio.Task[None] | None = None

    async def check(
        self,
        key: str,
        resource: str,
        action: str,
        *,
        tenant: str | None = None,
        product: str | None = None,
        min_revision: int = 0,
        timeout: float | None = None,
    ) -> Decision:
        """Return the decision whether the holder of the key may do the action on the resource.

        A denial is a decision too. Raises `ApiError` if no decision was made; treat it as a denial.
        """
        if self._local_cache is not None and self._runner is not None:
            decision = self._local_cache.recall(key, resource, action, tenant, product, min_revision)
            if decision is not None:
                return decision if decision.allowed else self._faults.note(decision, resource, action)
            self._runner.want(key)
        request = decisions.write(key, resource, action, tenant, product, min_revision)
        timeout = self._check_s(timeout)
        decision = await self._decide(request, timeout)
        if product is not None and self._faults.is_doubtful(decision, product):
            self._looking = asyncio.create_task(self._look_at(product), name="gatekey-check-config")
        return self._faults.note(decision, resource, action)

    async def require(
        self,
        key: str,
        resource: str,
        action: str,
        *,
        tenant: str | None = None,
        product: str | None = None,
        min_revision: int = 0,
        timeout: float | None = None,
    ) -> Decision:
        """Return the decision as `check` does, but raise `AccessDenied` for a denial."""
        decision = await self.check(
            key, resource, action, tenant=tenant, product=product, min_revision=min_revision, timeout=timeout
        )
        return decision.require()

    async def check_many(
        self, questions: Iterable[Question], *, timeout: float | None = None
    ) -> list[Decision | CheckFailed]:
        """Return the results of many questions, in their order.

        The result of a question that cannot be decided is a `CheckFailed`; the others are not affected. Raises
        `ApiError` if nothing can be decided.
        """
        asked = list(questions)
        written = [_recall_or_write(self._runner, question) for question in asked]
        ends = time.monotonic() + self._check_s(timeout)
        results: list[Decision | CheckFailed] = []
        for batch in _batches(written):
            results += await self._ask_many(batch, ends - time.monotonic())
        return self._faults.note_all(asked, decisions.merge(written, results))

    async def check_config(self, product: str | None = None, *, timeout: float | None = None) -> pb.CheckConfig:
        """Return the resources and actions of a product that can be checked, and where holders present their keys.

        Call it when a service starts, to learn whether the token may check the product's keys. The default product is
        the only one that the token may check. Raises `ApiError`.
        """
        return await self._transport.make(_check_config(product), self._check_s(timeout))

    async def close(self) -> None:
        """Close the connection. A closed client makes no more calls."""
        if self._batcher is not None:
            await self._batcher.close()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        if self._runner is not None:
            await self._runner.close()
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _look_at(self, product: str) -> None:
        try:
            await self.check_config(product)
        except errors.ApiError as error:
            self._faults.refuted(product, error)
        except RuntimeError:
            # The client was closed meanwhile.
            return

    async def _decide(self, request: pb.CheckRequest, timeout: float) -> Decision:
        if self._batcher is None:
            return await self._ask(request, timeout)
        ends = time.monotonic() + timeout
        result = await self._batcher.ask(request, timeout)
        if isinstance(result, Decision):
            return result
        if isinstance(result.error, errors.Unavailable):
            # The transport retries calls, but not one question of a batch.
            return await self._ask(request, ends - time.monotonic())
        raise result.error

    async def _ask(self, request: pb.CheckRequest, timeout: float) -> Decision:
        return decisions.read(await self._transport.make(_check(request), timeout))

    async def _ask_many(self, requests: Sequence[pb.CheckRequest], timeout: float) -> Sequence[Decision | CheckFailed]:
        if len(requests) == 1:
            return [await self._ask(requests[0], timeout)]
        return decisions.read_results(await self._transport.make(_batch_check(requests), timeout), len(requests))

    def _check_s(self, timeout: float | None) -> float:
        return self._timeouts.check if timeout is None else timeout

    async def _make(self, call: Call[R]) -> R:
        return await self._transport.make(call, self._timeouts.admin if call.timeout is None else call.timeout)

    async def _list(self, listing: Listing[Any, Item]) -> AsyncIterator[Item]:
        call: Call[Any] | None = listing.first
        while call is not None:
            page = await self._make(call)
            for item in listing.items(page):
                yield item
            call = listing.after(page)


def _recall_or_write(
    runner: CacheRunner | AsyncCacheRunner | None, asked: Question
) -> Decision | pb.CheckRequest | CheckFailed:
    if runner is not None:
        decision = runner.local_cache.recall(
            asked.key, asked.resource, asked.action, asked.tenant, asked.product, asked.min_revision
        )
        if decision is not None:
            return decision
        runner.want(asked.key)
    return decisions.try_to_write(asked)
