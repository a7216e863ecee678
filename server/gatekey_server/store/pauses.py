"""Letting other calls go on in the middle of long work.

Calls with long work go on one at a time. Otherwise each turn of the loop would be as long as there are such calls, and
a short call, which needs several turns, would wait for each of them several times.
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

# One thread, so that the event loop has to wait for no more than one.
_ASIDE = ThreadPoolExecutor(1, "gatekey-aside")

MAX_TURN_S = 0.005
"""For how long a call works before others have their turn."""

REST_S = 0.001
"""A call with long work goes on when nothing new has come for so long, and no call is under way that came lately."""

MAX_REST_S = 0.02
"""How long it waits for that: where there is no end of short calls, long ones go on all the same."""

LATELY_S = 0.05

_TURNS = WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]()


class Calls:
    """The calls under way that have no long work, as far as is known."""

    def __init__(self) -> None:
        self._count = 0
        self._began: dict[asyncio.Task[Any], float] = {}

    def begin(self, task: "asyncio.Task[Any]") -> None:
        """Count a call until its task is done."""
        self._count += 1
        self._began[task] = time.perf_counter()
        task.add_done_callback(self.forget)

    def forget(self, task: "asyncio.Task[Any]") -> None:
        """Leave out a call that is over, or has long work."""
        self._began.pop(task, None)

    async def rest(self) -> None:
        """Wait until the others have been answered, for some time at most."""
        give_up_at = time.perf_counter() + MAX_REST_S
        while True:
            count = self._count
            await asyncio.sleep(REST_S)
            now = time.perf_counter()
            newest = next(reversed(self._began.values()), 0.0)
            # The transport takes in one call a turn of the loop: others may be waiting outside.
            if now > give_up_at or (count == self._count and now - newest > LATELY_S):
                return


CALLS = Calls()


async def pause() -> None:
    """Let short calls go on, and the long ones whose turn it is before this one's."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is not None:
        CALLS.forget(task)
    turn = _TURNS.get(loop)
    if turn is None:
        turn = _TURNS[loop] = asyncio.Lock()
    async with turn:
        await CALLS.rest()


class Pauses:
    """Awaited between the steps of long work, lets the event loop go whenever it was held for some milliseconds."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    async def __call__(self) -> None:
        if time.perf_counter() - self._since > MAX_TURN_S:
            await pause()
            self._since = time.perf_counter()


async def each(items: Iterable[T]) -> list[T]:
    """Make a list of what is made one by one, and let others work meanwhile."""
    made, pauses = [], Pauses()
    for item in items:
        made.append(item)
        await pauses()
    return made


async def aside(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Do pure work that cannot be done in steps beside the event loop, which gets its turn every few milliseconds."""
    return await asyncio.get_running_loop().run_in_executor(_ASIDE, partial(work, *arguments, **named))
