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

Load = Callable[[Sequence[Digest]], Awaitable[Loaded]]


class _Batch:
    def __init__(self) -> None:
        self.digests: dict[Digest, None] = {}
        self.loaded: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        self.waiting = 0


class Loader:
    """Gathers what is wanted in one turn of the event loop, and while the database is busy, into one query.

    Whoever asks gets what was read after they asked: a query that was sent before is never waited for.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._waiting: deque[_Batch] = deque()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._is_scheduled = False

    async def get(self, digests: Sequence[Digest]) -> Loaded:
        """Load facts, by a query that is sent from now on. It may answer more than was asked for.

        Raises `Unavailable` where the database cannot answer, and `Overloaded` where too much is wanted already.
        """
        if len(self._waiting) > MAX_WAITING:
            raise Overloaded("OVERLOADED", "too many keys wait to be looked up")
        if not self._waiting or len(self._waiting[-1].digests) >= MAX_BATCH:
            self._waiting.append(_Batch())
        batch = self._waiting[-1]
        batch.digests.update(dict.fromkeys(digests))
        batch.waiting += 1
        self._schedule()
        try:
            return await asyncio.shield(batch.loaded)
        finally:
            batch.waiting -= 1

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._is_scheduled = False
        while self._waiting and len(self._in_flight) < MAX_IN_FLIGHT:
            batch = self._waiting.popleft()
            # Nobody waits any more for what all have given up.
            if batch.waiting:
                task = asyncio.create_task(self._run(batch))
                self._in_flight.add(task)
                task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        if self._waiting:
            self._schedule()

    async def _run(self, batch: _Batch) -> None:
        try:
            batch.loaded.set_result(await self._load(list(batch.digests)))
        except BaseException as error:
            batch.loaded.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
            # Retrieved, even where everyone who waited has gone.
            batch.loaded.exception()
            if not isinstance(error, Exception):
                raise
