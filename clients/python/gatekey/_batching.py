"""Checks that are asked in one tick of the event loop travel together."""

from __future__ import annotations

import asyncio
import copy
import functools
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
        self._trips: set[asyncio.Task[None]] = set()

    async def ask(self, request: pb.CheckRequest, timeout: float) -> Result:
        """Ask one question. Raises `CallFailed` where all that travelled together was not decided."""
        loop = asyncio.get_running_loop()
        asker = _Asker(request, loop.create_future(), loop.time() + timeout)
        if not self._waiting:
            # Behind everything that is ready to run now, and may ask as well.
            loop.call_soon(self._flush)
        self._waiting.append(asker)
        alarm = loop.call_at(asker.ends, asker.answer, errors.DeadlineExceeded(f"there was no answer in {timeout:g} s"))
        try:
            result = await asker.future
        finally:
            alarm.cancel()
        if isinstance(result, BaseException):
            raise result
        return result

    async def close(self) -> None:
        """Give up what is under way."""
        self._flush()
        for trip in self._trips:
            trip.cancel()
        await asyncio.gather(*self._trips, return_exceptions=True)

    def _flush(self) -> None:
        # Whoever was cancelled, or ran out of time, before this tick was over is not asked for.
        waiting = [asker for asker in self._waiting if not asker.future.done()]
        self._waiting = []
        for batch in decisions.batches(waiting, lambda asker: asker.request.ByteSize()):
            trip = asyncio.get_running_loop().create_task(self._travel(batch))
            self._trips.add(trip)
            trip.add_done_callback(functools.partial(self._ended, batch))
            _cancel_when_all_are_done(trip, batch)

    async def _travel(self, askers: Sequence[_Asker]) -> None:
        timeout = max(asker.ends for asker in askers) - asyncio.get_running_loop().time()
        results: Sequence[Result | BaseException]
        try:
            results = await self._send([asker.request for asker in askers], timeout)
        except Exception as error:  # noqa: BLE001 - it is each asker's own
            results = [_own(error) for _ in askers]
        for asker, result in zip(askers, results, strict=True):
            asker.answer(result)

    def _ended(self, askers: Sequence[_Asker], trip: asyncio.Task[None]) -> None:
        self._trips.discard(trip)
        # Whoever still waits was on a trip that was given up.
        for asker in askers:
            asker.answer(errors.Cancelled("the client was closed"))


class _Asker:
    """A question, and who waits for its answer until when."""

    __slots__ = ("ends", "future", "request")

    def __init__(self, request: pb.CheckRequest, future: asyncio.Future[Result | BaseException], ends: float) -> None:
        self.request = request
        self.future = future
        self.ends = ends

    def answer(self, result: Result | BaseException) -> None:
        # As a value also where it is an error: one that nobody waits for any more would be complained about.
        if not self.future.done():
            self.future.set_result(result)


def _own(error: Exception) -> Exception:
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    return copied


def _cancel_when_all_are_done(trip: asyncio.Task[None], askers: Sequence[_Asker]) -> None:
    left = len(askers)

    def one_is_done(_: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            trip.cancel()

    for asker in askers:
        asker.future.add_done_callback(one_is_done)
