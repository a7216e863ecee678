"""Whose transaction is next, and how many connections each kind of work has."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from gatekey.core.errors import Overloaded
from gatekey_server.store import turns as turns_module
from gatekey_server.store.database import Share, share_sizes
from gatekey_server.store.turns import MAX_WAITING_IN_SCOPE, Scope, Turns


def worker(
    turns: Turns, done: list[Scope], work: Callable[[], Awaitable[None]] | None = None
) -> Callable[[Scope], Coroutine[Any, Any, None]]:
    async def run(scope: Scope) -> None:
        async with turns.take(scope):
            await (work or (lambda: asyncio.sleep(0)))()
            done.append(scope)

    return run


async def test_a_crowd_waits_behind_everybody_else() -> None:
    turns, done = Turns(3), []  # type: tuple[Turns, list[Scope]]
    run = worker(turns, done)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(100):
            tasks.create_task(run(("a", "crowd")))
        for scope in [("a", "other"), ("b", "one"), ("b", "two")]:
            tasks.create_task(run(scope))
    assert len(done) == 103
    assert {("a", "other"), ("b", "one"), ("b", "two")} <= set(done[:8])
    assert turns.waiting == 0


async def test_one_transaction_of_a_tenant_and_not_all_places_for_a_product() -> None:
    turns, done, busy, most = Turns(4), [], set(), 0  # type: tuple[Turns, list[Scope], set[Scope], int]

    async def run(scope: Scope) -> None:
        nonlocal most
        async with turns.take(scope):
            assert scope not in busy
            busy.add(scope)
            most = max(most, len(busy))
            await asyncio.sleep(0.001)
            busy.remove(scope)
            done.append(scope)

    async with asyncio.TaskGroup() as tasks:
        for number in range(40):
            tasks.create_task(run(("a", f"t{number % 8}")))
    assert most == 3
    assert len(done) == 40


async def test_who_leaves_takes_no_place_along() -> None:
    turns = Turns(1)
    async with turns.take(("a", "x")):
        waiting = [asyncio.create_task(worker(turns, [])(("a", f"{number}"))) for number in range(10)]
        await asyncio.sleep(0)
        for task in waiting[:9]:
            task.cancel()
        await asyncio.sleep(0)
        assert turns.waiting == 1
    # Cancelled in the moment in which it is its turn.
    waiting[9].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    async with asyncio.timeout(1), turns.take(("b", "y")):
        assert turns.waiting == 0


@pytest.mark.parametrize("behind", [0, 3])
async def test_who_is_cancelled_before_it_notices_its_turn_takes_no_place_along(behind: int) -> None:
    """Its wait is over, and it has not gone on since: nothing may be given to it."""
    turns, done = Turns(1), []  # type: tuple[Turns, list[Scope]]
    run = worker(turns, done)
    async with turns.take(("a", "x")):
        first = asyncio.create_task(run(("a", "x")))
        others = [asyncio.create_task(run(("a", "x"))) for _ in range(behind)]
        await asyncio.sleep(0)
        first.cancel()
    await asyncio.gather(first, *others, return_exceptions=True)
    assert (first.cancelled(), len(done), turns.waiting) == (True, behind, 0)
    async with asyncio.timeout(1), turns.take(("a", "x")):
        pass


@pytest.mark.parametrize("late", [False, True], ids=["cancelled", "too late"])
async def test_who_leaves_while_a_place_gets_free_is_passed_over(monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    """Its task has been told, and has not run yet."""
    monkeypatch.setattr(turns_module, "TURN_TIMEOUT_S", 0.05)
    turns, done = Turns(2), []  # type: tuple[Turns, list[Scope]]
    async with turns.take(("a", "x")):
        waiting = asyncio.create_task(worker(turns, done)(("a", "x")))
        await asyncio.sleep(0)
        if late:
            time.sleep(0.06)  # noqa: ASYNC251 - so that its time is over and nothing of the loop has run since
            timed_out = asyncio.Event()
            asyncio.get_running_loop().call_soon(timed_out.set)
            await timed_out.wait()
        else:
            waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert turns.waiting == 0
    async with asyncio.timeout(1):
        for _ in range(3):
            await worker(turns, done)(("a", "x"))
    assert len(done) >= 3


async def test_waiting_is_bounded_in_number_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "TURN_TIMEOUT_S", 0.05)
    turns = Turns(2)
    async with turns.take(("a", "x")):
        waiting = [asyncio.create_task(worker(turns, [])(("a", "x"))) for _ in range(MAX_WAITING_IN_SCOPE)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await worker(turns, [])(("a", "x"))
        # Others are not affected.
        await worker(turns, [])(("b", "y"))
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, Overloaded) for result in results)
    assert turns.waiting == 0


@pytest.mark.parametrize("connections", [2, 3, 4, 5, 6, 10, 16, 40, 1000])
def test_every_kind_of_work_has_connections_and_together_no_more_than_there_are(connections: int) -> None:
    sizes = share_sizes(connections)
    assert sum(sizes.values()) == connections
    assert all(size >= 1 for size in sizes.values())
    assert frozenset().union(*sizes) == set(Share)
    # A check never waits for a mutation.
    assert not any({Share.LOADS, Share.MUTATIONS} <= group for group in sizes)


def test_the_default_is_documented() -> None:
    assert {next(iter(group)): size for group, size in share_sizes(16).items()} == {
        Share.LOADS: 4,
        Share.MUTATIONS: 7,
        Share.READS: 3,
        Share.CONTROL: 1,
        Share.BACKGROUND: 1,
    }
