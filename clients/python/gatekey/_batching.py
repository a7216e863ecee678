"""Checks that are asked in one tick of the event loop travel together."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence

from gatekey import decisions, errors
from gatekey.decisions import Decision, Undecided
from gatekey.v1 import check_service_pb2 as pb

Result = Decision | Undecided
Send = Callable[[Sequence[pb.CheckRequest], float], Awaitable[Sequence[Result]]]
"""Asks the questions, within so many seconds. Raises `CallFailed` where none of them was decided."""


class Batcher:
    """Collects the questions of one tick. Each caller waits for its own answer, and no longer than it wants to."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: list[_Asker] = []
        self._trips: set[_Trip] = set()

    async def ask(self, request: pb.CheckRequest, timeout: float) -> Result:
        """Ask one question. Raises `CallFailed` where all that travelled together was not decided."""
        loop = asyncio.get_running_loop()
        asker = _Asker(request, loop.create_future(), timeout, loop.time() + timeout)
        if not self._waiting:
            # Behind everything that is ready to run now, and may ask as well.
            loop.call_soon(self._flush)
        self._waiting.append(asker)
        try:
            result = await asker.future
        except asyncio.CancelledError:
            if asker.trip is not None:
                asker.trip.look_soon()
            raise
        if isinstance(result, BaseException):
            raise result
        return result

    async def close(self) -> None:
        """Give up what is under way."""
        self._flush()
        trips = [trip.cancel() for trip in self._trips]
        await asyncio.gather(*trips, return_exceptions=True)

    def _flush(self) -> None:
        # Whoever was cancelled before this tick was over is not asked for.
        waiting = [asker for asker in self._waiting if not asker.future.done()]
        self._waiting = []
        for batch in decisions.batches(waiting, lambda asker: asker.request.ByteSize()):
            self._trips.add(_Trip(batch, self._send, self._trips.discard))


class _Asker:
    """A question, and who waits for its answer until when."""

    __slots__ = ("ends", "future", "request", "timeout", "trip")

    def __init__(
        self, request: pb.CheckRequest, future: asyncio.Future[Result | BaseException], timeout: float, ends: float
    ) -> None:
        self.request = request
        self.future = future
        self.timeout = timeout
        self.ends = ends
        self.trip: _Trip | None = None

    def answer(self, result: Result | BaseException) -> None:
        # As a value also where it is an error: one that nobody waits for any more would be complained about.
        if not self.future.done():
            self.future.set_result(result)


class _Trip:
    """Questions that are under way together, for as long as anybody waits for one of them."""

    def __init__(self, askers: Sequence[_Asker], send: Send, ended: Callable[[_Trip], None]) -> None:
        self._askers = askers
        self._send = send
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._will_look = False
        for asker in askers:
            asker.trip = self
        # One for all: most callers wait equally long.
        self._alarm = self._loop.call_at(min(asker.ends for asker in askers), self._look)
        self._task = self._loop.create_task(self._travel())
        self._task.add_done_callback(self._end)

    def cancel(self) -> asyncio.Task[None]:
        """Answer nobody any more; the task ends soon."""
        self._task.cancel()
        return self._task

    def look_soon(self) -> None:
        """Find out whether anybody still waits, once for all who have left in this tick."""
        if not self._will_look:
            self._will_look = True
            self._loop.call_soon(self._look)

    async def _travel(self) -> None:
        timeout = max(asker.ends for asker in self._askers) - self._loop.time()
        results: Sequence[Result | BaseException]
        try:
            results = await self._send([asker.request for asker in self._askers], timeout)
        except Exception as error:  # noqa: BLE001 - it is each asker's own
            results = [_own(error) for _ in self._askers]
        for asker, result in zip(self._askers, results, strict=True):
            asker.answer(result)

    def _look(self) -> None:
        self._will_look = False
        self._alarm.cancel()
        now = self._loop.time()
        for asker in self._askers:
            if asker.ends <= now:
                asker.answer(errors.DeadlineExceeded(f"there was no answer in {asker.timeout:g} s"))
        waiting = [asker.ends for asker in self._askers if not asker.future.done()]
        if waiting:
            self._alarm = self._loop.call_at(min(waiting), self._look)
        else:
            self._task.cancel()

    def _end(self, _: object) -> None:
        self._alarm.cancel()
        self._ended(self)
        # Whoever still waits was on a trip that was given up.
        for asker in self._askers:
            asker.answer(errors.Cancelled("the client was closed"))


def _own(error: Exception) -> Exception:
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    return copied
