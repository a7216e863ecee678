"""The queue of mutations: one transaction at a time in a tenant, and no product takes all slots.

Mutations of one tenant run one after the other in any case, because they lock the tenant's row. Waiting here for that
occupies no connection, so many mutations of one tenant cost the others no more than a turn.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

from gatekey.core.errors import Overloaded

MAX_WAITING = 2048
"""How many transactions may wait in a process."""

MAX_WAITING_IN_SCOPE = 512
"""How many transactions of one tenant, or of one product itself, may wait."""

TURN_TIMEOUT_S = 5.0
"""How long a transaction may wait."""

Scope: TypeAlias = tuple[str, str]
"""The product and the tenant that a transaction locks. An empty tenant stands for the product itself."""

_Queue: TypeAlias = deque["asyncio.Future[None]"]


class Turns:
    """Assigns `slots` to transactions in turn: among products, and among the tenants of each."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._most_of_product = max(1, slots - 1)
        self._busy: set[Scope] = set()
        self._busy_of_product: Counter[str] = Counter()
        self._waiting: OrderedDict[str, OrderedDict[Scope, _Queue]] = OrderedDict()
        self.waiting = 0
        """How many transactions wait."""

    @asynccontextmanager
    async def take(self, scope: Scope) -> AsyncIterator[None]:
        """Hold a slot, after waiting for a turn. Raises `Overloaded` (`OVERLOADED`)."""
        if self._free and self._may_begin(scope) and not self._queue_of(scope):
            self._begin(scope)
        else:
            await self._wait(scope)
        try:
            yield
        finally:
            self._end(scope)

    async def _wait(self, scope: Scope) -> None:
        queue = self._queue_of(scope)
        if self.waiting >= MAX_WAITING or (queue and len(queue) >= MAX_WAITING_IN_SCOPE):
            raise Overloaded("OVERLOADED", "too many changes wait for their turn")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(scope[0], OrderedDict()).setdefault(scope, deque()).append(turn)
        self.waiting += 1
        # Waiting for the future directly would cancel it early, and leave it in the queue until the task runs again.
        try:
            await asyncio.wait([turn], timeout=TURN_TIMEOUT_S)
        except BaseException:
            if turn.done():
                self._end(scope)
            else:
                self._leave(scope, turn)
            raise
        if not turn.done():
            self._leave(scope, turn)
            raise Overloaded("OVERLOADED", "too many changes wait for their turn")

    def _queue_of(self, scope: Scope) -> _Queue | None:
        scopes = self._waiting.get(scope[0])
        return None if scopes is None else scopes.get(scope)

    def _may_begin(self, scope: Scope) -> bool:
        return scope not in self._busy and self._busy_of_product[scope[0]] < self._most_of_product

    def _begin(self, scope: Scope) -> None:
        self._free -= 1
        self._busy.add(scope)
        self._busy_of_product[scope[0]] += 1

    def _end(self, scope: Scope) -> None:
        self._free += 1
        self._busy.discard(scope)
        self._busy_of_product[scope[0]] -= 1
        if not self._busy_of_product[scope[0]]:
            del self._busy_of_product[scope[0]]
        while self._free and (following := self._next()) is not None:
            turn = self._waiting[following[0]][following][0]
            self._leave(following, turn)
            # Last in line, in the product and among the products.
            if following in self._waiting.get(following[0], {}):
                self._waiting[following[0]].move_to_end(following)
            if following[0] in self._waiting:
                self._waiting.move_to_end(following[0])
            self._begin(following)
            turn.set_result(None)

    def _next(self) -> Scope | None:
        # Skipped entries have a running transaction, so there are never more of them than slots.
        for product, scopes in self._waiting.items():
            if self._busy_of_product[product] < self._most_of_product:
                for scope in scopes:
                    if scope not in self._busy:
                        return scope
        return None

    def _leave(self, scope: Scope, turn: "asyncio.Future[None]") -> None:
        self.waiting -= 1
        scopes = self._waiting[scope[0]]
        scopes[scope].remove(turn)
        if not scopes[scope]:
            del scopes[scope]
        if not scopes:
            del self._waiting[scope[0]]
