"""Yielding to other calls in the middle of long work.

Calls with long work proceed one at a time. Otherwise each turn of the loop would include a step of every such call,
and a short call, which needs several turns, would wait for each of them several times.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

P = ParamSpec("P")
T = TypeVar("T")

# One thread, so that the event loop competes with one at most.
_ASIDE = ThreadPoolExecutor(1, "gatekey-aside")

MAX_TURN_S = 0.005
"""How long a call works before it yields to others."""

REST_S = 0.001
"""A call with long work continues when no call has come for this long, and no recent call is in progress."""

MAX_REST_S = 0.02
"""How long it waits for that at most, so that long calls proceed under any number of short ones."""

LATELY_S = 0.05

_TURNS = WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]()


class Calls:
    """The calls in progress that have no long work so far."""

    def __init__(self) -> None:
        self._count = 0
        self._began: dict[asyncio.Task[Any], float] = {}

    def begin(self, task: "asyncio.Task[Any]") -> None:
        """Count a call until its task is done."""
        self._count += 1
        self._began[task] = time.perf_counter()
        task.add_done_callback(self.forget)

    def forget(self, task: "asyncio.Task[Any]") -> None:
        """Remove a call that has ended, or has long work."""
        self._began.pop(task, None)

    async def rest(self) -> None:
        """Wait until the other calls have ended, for `MAX_REST_S` at most."""
        deadline = time.perf_counter() + MAX_REST_S
        while True:
            count = self._count
            await asyncio.sleep(REST_S)
            now = time.perf_counter()
            newest = next(reversed(self._began.values()), 0.0)
            # The transport accepts one call per turn of the loop: more may be waiting.
            if now > deadline or (count == self._count and now - newest > LATELY_S):
                return


CALLS = Calls()


async def pause() -> None:
    """Yield to short calls, and to long ones that are first in line."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is not None:
        CALLS.forget(task)
    turn = _TURNS.get(loop)
    if turn is None:
        turn = _TURNS[loop] = asyncio.Lock()
    async with turn:
        await CALLS.rest()


class Pauses:
    """Awaited between the steps of long work: yields to the event loop after some milliseconds of work."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    async def __call__(self) -> None:
        if time.perf_counter() - self._since > MAX_TURN_S:
            await pause()
            self._since = time.perf_counter()


async def each(items: Iterable[T]) -> list[T]:
    """Return the items as a list, yielding to the event loop between them."""
    made, pauses = [], Pauses()
    for item in items:
        made.append(item)
        await pauses()
    return made


async def aside(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Run pure work that has no steps in a thread. The event loop gets a turn every few milliseconds."""
    return await asyncio.get_running_loop().run_in_executor(_ASIDE, partial(work, *arguments, **named))
