"""Loads that go to the database together."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from gatekey.core.errors import Overloaded, Unavailable
from gatekey.core.secrets import Digest, Secret
from gatekey_server.freshness.loads import (
    MAX_BATCH,
    MAX_FEW,
    MAX_IN_FLIGHT,
    MAX_LARGE_IN_FLIGHT,
    MAX_LARGE_WAITING,
    MAX_WAITING,
    PATIENCE_S,
    Loader,
)
from gatekey_server.store.snapshots import LoadResult

from tests.unit.test_cache import digest

SERVER = datetime(2026, 1, 1, tzinfo=UTC)


class Source:
    """A database that answers when it is told to, and counts what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[list[Digest]] = []
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, digests: Sequence[Digest]) -> LoadResult:
        self.asked.append(list(digests))
        revision = len(self.asked)
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return LoadResult(revision, {}, SERVER)


def secret(number: int, peppers: int = 1) -> Secret:
    """One of as many secrets as are wanted."""
    return tuple(digest(number * peppers + pepper) for pepper in range(peppers))


async def settle() -> None:
    """Let everything happen that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_is_asked_in_one_turn_is_one_query() -> None:
    source = Source()
    source.go.set()
    loader = Loader(source)
    await asyncio.gather(*(loader.begin([secret(number % 50)]) for number in range(200)))
    assert [len(digests) for digests in source.asked] == [50]


async def test_a_query_that_was_sent_before_is_never_waited_for() -> None:
    source = Source()
    loader = Loader(source)
    first = loader.begin([secret(1)])
    await settle()
    second = loader.begin([secret(1)])
    await settle()
    source.go.set()
    assert ((await first).revision, (await second).revision) == (1, 2)


async def test_a_cold_start_asks_little_at_once() -> None:
    source = Source()
    loader = Loader(source)
    callers = []
    for number in range(4000):
        callers.append(loader.begin([secret(number)]))
        if number % 100 == 0:
            await settle()
    assert len(source.asked) <= MAX_IN_FLIGHT
    source.go.set()
    await asyncio.gather(*callers)
    assert all(len(digests) <= MAX_BATCH for digests in source.asked)
    assert len(source.asked) <= 4000 / MAX_BATCH + MAX_IN_FLIGHT + 1


async def test_while_a_query_is_under_way_the_next_gathers_more_but_not_for_ever() -> None:
    source = Source()
    loader = Loader(source)
    loads = [loader.begin([secret(1)])]
    await settle()
    for number in (2, 3):
        loads.append(loader.begin([secret(number)]))
        await settle()
    assert source.asked == [[digest(1)]]
    await asyncio.sleep(10 * PATIENCE_S)
    assert source.asked == [[digest(1)], [digest(2), digest(3)]]
    source.go.set()
    assert [loaded.revision for loaded in await asyncio.gather(*loads)] == [1, 2, 2]


async def test_a_full_query_is_not_kept_waiting() -> None:
    source = Source()
    loader = Loader(source)
    loads = [loader.begin([secret(0)])]
    await settle()
    loads += [loader.begin([secret(number)]) for number in range(1, MAX_BATCH + 1)]
    await settle()
    assert [len(digests) for digests in source.asked] == [1, MAX_BATCH]
    source.go.set()
    await asyncio.gather(*loads)


async def test_a_failure_is_told_to_all_who_wait_and_is_over_then() -> None:
    source = Source()
    loader = Loader(source)
    source.error = Unavailable("DATABASE_UNAVAILABLE", "away")
    source.go.set()
    answers = await asyncio.gather(*(loader.begin([secret(number)]) for number in range(3)), return_exceptions=True)
    assert all(isinstance(answer, Unavailable) for answer in answers)
    source.error = None
    assert (await loader.begin([secret(1)])).revision == 2


async def test_who_gives_up_does_not_take_the_others_along() -> None:
    source = Source()
    loader = Loader(source)
    leaving, staying = (loader.begin([secret(number)]) for number in (1, 2))
    await settle()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    source.go.set()
    assert (await staying).revision == 1


async def test_nothing_is_asked_for_whom_nobody_waits() -> None:
    source = Source()
    loader = Loader(source)
    loads = [loader.begin([secret(1)])]
    await settle()
    loads += [loader.begin([secret(99)])]
    await settle()
    loads[-1].cancel()
    await settle()
    source.go.set()
    await asyncio.gather(*loads, return_exceptions=True)
    await asyncio.sleep(10 * PATIENCE_S)
    assert all(digest(99) not in digests for digests in source.asked)


async def test_what_cannot_be_answered_soon_is_refused_at_once() -> None:
    source = Source()
    loader = Loader(source)
    callers = []
    for batch in range(MAX_IN_FLIGHT + MAX_WAITING):
        callers += [loader.begin([secret(batch * MAX_BATCH + number)]) for number in range(MAX_BATCH)]
        await settle()
    callers.append(loader.begin([secret(0)]))
    large = [secret(number) for number in range(MAX_BATCH)]
    for _ in range(MAX_LARGE_IN_FLIGHT + MAX_LARGE_WAITING + 1):
        callers.append(loader.begin(large))
        await settle()
    assert not any(caller.done() for caller in callers)
    for secrets in ([secret(0)], large):
        with pytest.raises(Overloaded):
            await loader.begin(secrets)
    source.go.set()
    await asyncio.gather(*callers)
    await loader.begin([secret(0)])
    await loader.begin(large)


async def test_who_wants_few_secrets_does_not_wait_for_who_wants_many() -> None:
    source = Source()
    loader = Loader(source)
    many = [
        loader.begin([secret(call * 1000 + number) for number in range(MAX_FEW + 1 + call)])
        for call in range(2 * MAX_BATCH // MAX_FEW)
    ]
    await settle()
    few = loader.begin([secret(number) for number in range(MAX_FEW)])
    await settle()
    # One large query at a time, however many there are and however long it takes.
    await asyncio.sleep(10 * PATIENCE_S)
    assert [len(digests) > MAX_FEW for digests in source.asked] == [True, False]
    source.go.set()
    assert (await few).revision == 2
    await asyncio.gather(*many)
    assert len(source.asked) > 3


async def test_secrets_are_counted_and_not_the_peppers_they_are_hashed_with() -> None:
    source = Source()
    loader = Loader(source)
    many = [loader.begin([secret(number, 20) for number in range(MAX_FEW + 1)]) for _ in range(2)]
    await settle()
    few = loader.begin([secret(number, 20) for number in range(MAX_FEW)])
    await settle()
    assert [len(digests) for digests in source.asked] == [20 * (MAX_FEW + 1), 20 * MAX_FEW]
    source.go.set()
    await asyncio.gather(few, *many)
