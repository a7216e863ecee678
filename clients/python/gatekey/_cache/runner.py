"""What makes the calls of a client cache: a thread, or a task of an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

from gatekey import errors
from gatekey._calls import AsyncTransport, Transport
from gatekey._fork_hooks import Lock, hold_while_forking, in_forked_child

if TYPE_CHECKING:
    from gatekey._cache.sync import CacheSync, Work

_CALL_S = 1.0


class CacheRunner:
    """Keeps a cache fresh in a thread.

    The first check that the cache cannot decide starts the thread. It ends when there were no checks for a while.
    """

    def __init__(self, sync: CacheSync, transport: Transport) -> None:
        self.local_cache = sync.local_cache
        self._sync = sync
        self._transport = transport
        self._closed = False
        self._thread: threading.Thread | None
        self._start_over()
        in_forked_child(self, CacheRunner._start_over)
        hold_while_forking(self, CacheRunner._calling_lock)

    def want(self, key: str) -> None:
        """Have a key resolved, and the lease renewed."""
        self._sync.want(key)
        with self._changed:
            if self._closed:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="gatekey-cache", daemon=True)
                self._thread.start()
            elif self._sync.has_work():
                self._changed.notify()

    def close(self) -> None:
        """End the thread, after it has reported uses."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _start_over(self) -> None:
        """Have no thread, as in a forked process."""
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
                self._make_calls(self._sync.work())
            self._make_calls(self._sync.report())
        finally:
            with changed:
                self._thread = None

    def _goes_on(self) -> bool:
        with self._changed:
            if not self._closed and not self._sync.has_work():
                self._changed.wait(self._sync.pause_s())
            return not self._closed and not self._sync.is_idle()

    def _make_calls(self, work: Work) -> None:
        with contextlib.suppress(StopIteration):
            call = next(work)
            while True:
                try:
                    with self._calling:
                        response = self._transport.make(call, call.timeout or _CALL_S)
                except errors.ApiError as error:
                    call = work.throw(error)
                else:
                    call = work.send(response)


class AsyncCacheRunner:
    """The same as `CacheRunner`, in a task of the event loop of the first such check."""

    def __init__(self, sync: CacheSync, transport: AsyncTransport) -> None:
        self.local_cache = sync.local_cache
        self._sync = sync
        self._transport = transport
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def want(self, key: str) -> None:
        """Have a key resolved, and the lease renewed."""
        if self._closed:
            return
        self._sync.want(key)
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="gatekey-cache")

    async def close(self) -> None:
        """End the task, and report uses."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._make_calls(self._sync.report())

    async def _run(self) -> None:
        while not self._sync.is_idle():
            self._changed.clear()
            if not self._sync.has_work():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._sync.pause_s()):
                        await self._changed.wait()
            await self._make_calls(self._sync.work())
        await self._make_calls(self._sync.report())

    async def _make_calls(self, work: Work) -> None:
        with contextlib.suppress(StopIteration):
            call = next(work)
            while True:
                try:
                    response = await self._transport.make(call, call.timeout or _CALL_S)
                except errors.ApiError as error:
                    call = work.throw(error)
                else:
                    call = work.send(response)
