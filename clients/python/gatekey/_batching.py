"""Checks that start in one tick of the event loop travel together."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence

from gatekey import decisions, errors
from gatekey.decisions import CheckFailed, Decision
from gatekey.v1 import check_service_pb2 as pb

Result = Decision | CheckFailed
Send = Callable[[Sequence[pb.CheckRequest], float], Awaitable[Sequence[Result]]]
"""Sends the questions, with a timeout in seconds. Raises `ApiError` where none of them was decided."""


class Batcher:
    """Collects the questions of one tick. Each caller waits for its own result, and no longer than its timeout."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: list[_Waiter] = []
        self._batches: set[_InflightBatch] = set()

    async def ask(self, request: pb.CheckRequest, timeout: float) -> Result:
        """Return the result of one question. Raises `ApiError` where nothing that travelled together was decided."""
        loop = asyncio.get_running_loop()
        waiter = _Waiter(request, loop.create_future(), timeout, loop.time() + timeout)
        if not self._waiting:
            # Behind everything that is ready to run now, and may ask as well.
            loop.call_soon(self._flush)
        self._waiting.append(waiter)
        try:
            result = await waiter.future
        except asyncio.CancelledError:
            if waiter.batch is not None:
                waiter.batch.look_soon()
            raise
        if isinstance(result, BaseException):
            raise result
        return result

    async def close(self) -> None:
        """Give up what is under way."""
        self._flush()
        batches = [batch.cancel() for batch in self._batches]
        await asyncio.gather(*batches, return_exceptions=True)

    def _flush(self) -> None:
        # Whoever was cancelled before this tick was over is not asked for.
        waiting = [waiter for waiter in self._waiting if not waiter.future.done()]
        self._waiting = []
        for batch in decisions.batches(waiting, lambda waiter: waiter.request.ByteSize()):
            self._batches.add(_InflightBatch(batch, self._send, self._batches.discard))


class _Waiter:
    """A question, and the caller that waits for its result, with its timeout."""

    __slots__ = ("batch", "ends", "future", "request", "timeout")

    def __init__(
        self, request: pb.CheckRequest, future: asyncio.Future[Result | BaseException], timeout: float, ends: float
    ) -> None:
        self.request = request
        self.future = future
        self.timeout = timeout
        self.ends = ends
        self.batch: _InflightBatch | None = None

    def set_result(self, result: Result | BaseException) -> None:
        # As a value also where it is an error: one that nobody waits for any more would be complained about.
        if not self.future.done():
            self.future.set_result(result)


class _InflightBatch:
    """Questions that are under way together, for as long as anybody waits for one of them."""

    def __init__(self, waiters: Sequence[_Waiter], send: Send, ended: Callable[[_InflightBatch], None]) -> None:
        self._waiters = waiters
        self._send = send
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._will_look = False
        for waiter in waiters:
            waiter.batch = self
        # One for all: most callers wait equally long.
        self._alarm = self._loop.call_at(min(waiter.ends for waiter in waiters), self._look)
        self._task = self._loop.create_task(self._fly())
        self._task.add_done_callback(self._end)

    def cancel(self) -> asyncio.Task[None]:
        """Return the task of the batch, which is cancelled and ends soon."""
        self._task.cancel()
        return self._task

    def look_soon(self) -> None:
        """Find out whether anybody still waits, once for all who have left in this tick."""
        if not self._will_look:
            self._will_look = True
            self._loop.call_soon(self._look)

    async def _fly(self) -> None:
        timeout = max(waiter.ends for waiter in self._waiters) - self._loop.time()
        results: Sequence[Result | BaseException]
        try:
            results = await self._send([waiter.request for waiter in self._waiters], timeout)
        except Exception as error:  # noqa: BLE001 - it is each asker's own
            results = [_own(error) for _ in self._waiters]
        for waiter, result in zip(self._waiters, results, strict=True):
            waiter.set_result(result)

    def _look(self) -> None:
        self._will_look = False
        self._alarm.cancel()
        now = self._loop.time()
        for waiter in self._waiters:
            if waiter.ends <= now:
                waiter.set_result(errors.DeadlineExceeded(f"there was no response within {waiter.timeout:g} s"))
        waiting = [waiter.ends for waiter in self._waiters if not waiter.future.done()]
        if waiting:
            self._alarm = self._loop.call_at(min(waiting), self._look)
        else:
            self._task.cancel()

    def _end(self, _: object) -> None:
        self._alarm.cancel()
        self._ended(self)
        # Whoever still waits was in a batch that was cancelled.
        for waiter in self._waiters:
            waiter.set_result(errors.Cancelled("the client was closed"))


def _own(error: Exception) -> Exception:
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    return copied
