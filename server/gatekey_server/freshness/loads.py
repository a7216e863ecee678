"""Loads of snapshots, batched into few queries."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain

from gatekey.core.errors import Overloaded
from gatekey.core.secrets import Digest, Secret

from gatekey_server.store.snapshots import LoadResult

MAX_FEW = 16
"""Requests for more secrets than this queue apart from the others: such a query may take a second."""
MAX_BATCH = 64
"""How many secrets one query reads, each with a digest per pepper."""
MAX_IN_FLIGHT = 3
MAX_LARGE_IN_FLIGHT = 1
MAX_WAITING = 64
MAX_LARGE_WAITING = 16
PATIENCE_S = 0.005
"""How long a query may take before a second, partly filled one is sent beside it. Few large queries cost less than
many small ones."""

Load = Callable[[Sequence[Digest]], Awaitable[LoadResult]]


class _Batch:
    def __init__(self) -> None:
        self.secrets: dict[Secret, None] = {}
        self.waiting: list[asyncio.Future[LoadResult]] = []


class Loader:
    """Batches the requests of one turn of the event loop, and those that come while a query runs, into one query.

    A request never joins a query that was sent before it, so the result is never older than the request. Requests for
    few secrets do not wait for requests for many.
    """

    def __init__(self, load: Load) -> None:
        self._few = _Queue(load, MAX_IN_FLIGHT, MAX_WAITING)
        self._many = _Queue(load, MAX_LARGE_IN_FLIGHT, MAX_LARGE_WAITING)

    def begin(self, secrets: Sequence[Secret]) -> "asyncio.Future[LoadResult]":
        """Load snapshots by a query that is sent from now on. The result may hold more than was asked for.

        Cancel the future when the result is no longer needed. It fails with `Unavailable` where the
        database does not respond, and with `Overloaded` where too many requests wait already.
        """
        return (self._few if len(secrets) <= MAX_FEW else self._many).begin(secrets)


class _Queue:
    def __init__(self, load: Load, max_in_flight: int, max_waiting: int) -> None:
        self._load = load
        self._max_in_flight = max_in_flight
        self._max_waiting = max_waiting
        self._waiting: deque[_Batch] = deque()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._is_scheduled = False
        self._patient_until = float("-inf")

    def begin(self, secrets: Sequence[Secret]) -> "asyncio.Future[LoadResult]":
        loop = asyncio.get_running_loop()
        loading: asyncio.Future[LoadResult] = loop.create_future()
        if len(self._waiting) > self._max_waiting:
            loading.set_exception(Overloaded("OVERLOADED", "too many keys wait to be looked up"))
            return loading
        if not self._waiting or len(self._waiting[-1].secrets) >= MAX_BATCH:
            self._waiting.append(_Batch())
        batch = self._waiting[-1]
        batch.secrets.update(dict.fromkeys(secrets))
        batch.waiting.append(loading)
        self._schedule(loop)
        return loading

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            loop.call_soon(self._send)

    def _send(self) -> None:
        self._is_scheduled = False
        while self._waiting and self._may_send():
            batch = self._waiting.popleft()
            # Skip a batch whose requests have all been cancelled.
            if not all(loading.done() for loading in batch.waiting):
                task = asyncio.create_task(self._run(batch))
                self._in_flight.add(task)
                task.add_done_callback(self._finish)
                self._patient_until = task.get_loop().time() + PATIENCE_S
                task.get_loop().call_at(self._patient_until, self._send)

    def _may_send(self) -> bool:
        if len(self._in_flight) >= self._max_in_flight:
            return False
        is_worth_it = not self._in_flight or len(self._waiting[0].secrets) >= MAX_BATCH
        return is_worth_it or asyncio.get_running_loop().time() >= self._patient_until

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        if self._waiting:
            self._schedule(asyncio.get_running_loop())

    async def _run(self, batch: _Batch) -> None:
        try:
            loaded = await self._load(list(dict.fromkeys(chain.from_iterable(batch.secrets))))
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait are told
            for loading in batch.waiting:
                if not loading.done():
                    loading.set_exception(error)
        except BaseException:
            for loading in batch.waiting:
                loading.cancel()
            raise
        else:
            for loading in batch.waiting:
                if not loading.done():
                    loading.set_result(loaded)
