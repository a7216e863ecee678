"""Who keeps a client cache: a thread, or a task of an event loop, that makes the calls it wants made."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gatekey import errors
from gatekey._calls import AsyncTransport, Transport
from gatekey._fork_hooks import Lock, hold_while_forking, in_forked_child

if TYPE_CHECKING:
    from gatekey._cache.local_cache import LocalCache, Work

_CALL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """How a client cache is to be."""

    entries: int = 100_000
    """How many keys are held at most."""
    stale_s: float = 0.0
    """Where the server cannot be reached: for how many seconds more, after nothing is certain any longer, checks are
    answered by what was known last. Such an answer may be stale: a key that was revoked may be allowed. 0: never."""


def make_cache(cache: bool | Cache) -> LocalCache | None:
    """The client cache that is wanted, if one is. Raises `ValueError`."""
    if cache is False:
        return None
    wanted = Cache() if cache is True else cache
    if wanted.entries < 1 or wanted.stale_s < 0:
        raise ValueError("a client cache holds at least one key, and is stale for no less than 0 s")
    # What decides is a part of the server, and is not needed without a client cache.
    from gatekey._cache.local_cache import LocalCache  # noqa: PLC0415

    return LocalCache(wanted.entries, wanted.stale_s)


class CacheRunner:
    """Keeps a client cache in a thread, which ends when nobody has asked for a while."""

    def __init__(self, local_cache: LocalCache, transport: Transport) -> None:
        self.local_cache = local_cache
        self._transport = transport
        self._thread: threading.Thread | None = None
        self._closed = False
        self._begin()
        in_forked_child(self, CacheRunner._begin)
        hold_while_forking(self, CacheRunner._calling_lock)

    def want(self, key: str) -> None:
        """Have a key looked up, and the lease renewed."""
        self.local_cache.want(key)
        with self._changed:
            if self._closed:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="gatekey-cache", daemon=True)
                self._thread.start()
            elif self.local_cache.has_work():
                self._changed.notify()

    def close(self) -> None:
        """End the thread, after it has told which keys were used."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _begin(self) -> None:
        """Have no thread, as in a process that was forked."""
        self._changed = threading.Condition()
        self._calling = threading.RLock()
        self._thread = None

    def _calling_lock(self) -> Lock:
        """Return the lock that is held while a call is made: gRPC does not survive a fork meanwhile."""
        return self._calling

    def _run(self) -> None:
        changed = self._changed
        try:
            while self._goes_on():
                self._do(self.local_cache.work())
            self._do(self.local_cache.report())
        finally:
            with changed:
                self._thread = None

    def _goes_on(self) -> bool:
        with self._changed:
            if not self._closed and not self.local_cache.has_work():
                self._changed.wait(self.local_cache.pause_s())
            return not self._closed and not self.local_cache.is_idle()

    def _do(self, work: Work) -> None:
        with contextlib.suppress(StopIteration):
            call = next(work)
            while True:
                try:
                    with self._calling:
                        answer = self._transport.make(call, call.timeout or _CALL_S)
                except errors.ApiError as error:
                    call = work.throw(error)
                else:
                    call = work.send(answer)


class AsyncCacheRunner:
    """Keeps a client cache in a task, which ends when nobody has asked for a while."""

    def __init__(self, local_cache: LocalCache, transport: AsyncTransport) -> None:
        self.local_cache = local_cache
        self._transport = transport
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def want(self, key: str) -> None:
        """Have a key looked up, and the lease renewed."""
        if self._closed:
            return
        self.local_cache.want(key)
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="gatekey-cache")

    async def close(self) -> None:
        """End the task, and tell which keys were used."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._do(self.local_cache.report())

    async def _run(self) -> None:
        while not self.local_cache.is_idle():
            self._changed.clear()
            if not self.local_cache.has_work():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.local_cache.pause_s()):
                        await self._changed.wait()
            await self._do(self.local_cache.work())
        await self._do(self.local_cache.report())

    async def _do(self, work: Work) -> None:
        with contextlib.suppress(StopIteration):
            call = next(work)
            while True:
                try:
                    answer = await self._transport.make(call, call.timeout or _CALL_S)
                except errors.ApiError as error:
                    call = work.throw(error)
                else:
                    call = work.send(answer)
