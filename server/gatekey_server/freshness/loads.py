"""Loads of facts that go to the database together."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from gatekey_server.domain.errors import Overloaded
from gatekey_server.domain.secrets import Digest
from gatekey_server.store.facts import Loaded

MAX_BATCH = 256
MAX_IN_FLIGHT = 4
MAX_WAITING = 16
PATIENCE_S = 0.005
"""How long a query may take before another one is sent beside it: fewer that ask for more cost everyone less."""

Load = Callable[[Sequence[Digest]], Awaitable[Loaded]]


class _Batch:
    def __init__(self) -> None:
        self.digests: dict[Digest, None] = {}
        self.waiting: list[asyncio.Future[Loaded]] = []


class Loader:
    """Gathers what is wanted in one turn of the event loop, and while a query is under way, into one query.

    Whoever asks gets what was read after they asked: a query that was sent before is never waited for.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._waiting: deque[_Batch] = deque()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._is_scheduled = False
        self._patient_until = float("-inf")

    def begin(self, digests: Sequence[Digest]) -> "asyncio.Future[Loaded]":
        """Load facts, by a query that is sent from now on. It may answer more than was asked for.

        To be cancelled by whoever does not want them any more. Fails with `Unavailable` where the
        database cannot answer, and with `Overloaded` where too much is wanted already.
        """
        loop = asyncio.get_running_loop()
        loading: asyncio.Future[Loaded] = loop.create_future()
        if len(self._waiting) > MAX_WAITING:
            loading.set_exception(Overloaded("OVERLOADED", "too many keys wait to be looked up"))
            return loading
        if not self._waiting or len(self._waiting[-1].digests) >= MAX_BATCH:
            self._waiting.append(_Batch())
        batch = self._waiting[-1]
        batch.digests.update(dict.fromkeys(digests))
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
            # Nobody waits any more for what all have given up.
            if not all(loading.done() for loading in batch.waiting):
                task = asyncio.create_task(self._run(batch))
                self._in_flight.add(task)
                task.add_done_callback(self._finish)
                self._patient_until = task.get_loop().time() + PATIENCE_S
                task.get_loop().call_at(self._patient_until, self._send)

    def _may_send(self) -> bool:
        if len(self._in_flight) >= MAX_IN_FLIGHT:
            return False
        is_worth_it = not self._in_flight or len(self._waiting[0].digests) >= MAX_BATCH
        return is_worth_it or asyncio.get_running_loop().time() >= self._patient_until

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        if self._waiting:
            self._schedule(asyncio.get_running_loop())

    async def _run(self, batch: _Batch) -> None:
        try:
            loaded = await self._load(list(batch.digests))
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
