"""Checks of one tick travel together, and yet each is its caller's own."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import gatekey
import pytest
from gatekey._batching import Batcher, Result
from gatekey.v1 import check_service_pb2 as pb

from tests.client_python.support import Shop
from tests.support.server import Client

YES = gatekey.Decision(True, gatekey.Reason.ALLOWED, "allowed")
LONG = 60.0


@dataclass
class Sender:
    """Stands in for the server: remembers what was sent, and answers when it may."""

    open: asyncio.Event = field(default_factory=asyncio.Event)
    sent: list[tuple[list[str], float]] = field(default_factory=list)
    cancelled: int = 0
    problem: Exception | None = None

    async def __call__(self, requests: Sequence[pb.CheckRequest], within: float) -> Sequence[Result]:
        self.sent.append(([request.key for request in requests], within))
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.problem is not None:
            raise self.problem
        return [
            gatekey.CheckFailed(gatekey.InvalidArgument(request.key)) if request.key.startswith("bad") else YES
            for request in requests
        ]

    @property
    def keys(self) -> list[list[str]]:
        return [keys for keys, _ in self.sent]


def ask(batcher: Batcher, key: str, timeout: float = LONG) -> asyncio.Task[Result]:
    return asyncio.create_task(batcher.ask(pb.CheckRequest(key=key), timeout))


async def ticks(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_is_asked_in_one_tick_travels_together() -> None:
    sender = Sender()
    batcher = Batcher(sender)
    first = [ask(batcher, name) for name in "abc"]
    await ticks()
    second = [ask(batcher, name) for name in "de"]
    await ticks()
    assert sender.keys == [["a", "b", "c"], ["d", "e"]]
    sender.open.set()
    assert await asyncio.gather(*first, *second) == [YES] * 5


async def test_an_error_of_one_question_is_its_caller_s() -> None:
    sender = Sender()
    sender.open.set()
    batcher = Batcher(sender)
    good, bad, worse = await asyncio.gather(*(ask(batcher, key) for key in ("a", "bad", "bad too")))
    assert good is YES
    assert isinstance(bad, gatekey.CheckFailed)
    assert isinstance(worse, gatekey.CheckFailed)
    assert (bad.error.message, worse.error.message) == ("bad", "bad too")
    assert len(sender.sent) == 1


async def test_when_nothing_was_decided_every_caller_gets_an_error_of_its_own() -> None:
    sender = Sender(problem=gatekey.Unavailable("away", "DATABASE_UNAVAILABLE"))
    sender.open.set()
    batcher = Batcher(sender)
    results = await asyncio.gather(*(ask(batcher, key) for key in "ab"), return_exceptions=True)
    assert [str(error) for error in results] == ["away (DATABASE_UNAVAILABLE)"] * 2
    assert results[0] is not results[1]


async def test_a_cancelled_caller_takes_nobody_along() -> None:
    sender = Sender()
    batcher = Batcher(sender)
    kept, given_up = ask(batcher, "kept"), ask(batcher, "given up")
    await ticks()
    given_up.cancel()
    await ticks()
    sender.open.set()
    assert await kept is YES
    assert given_up.cancelled()
    assert (sender.keys, sender.cancelled) == ([["kept", "given up"]], 0)


async def test_whoever_gives_up_within_the_tick_is_not_asked_for() -> None:
    sender = Sender()
    sender.open.set()
    batcher = Batcher(sender)
    kept = ask(batcher, "kept")
    gone = asyncio.ensure_future(batcher.ask(pb.CheckRequest(key="gone"), LONG))
    asyncio.get_running_loop().call_soon(gone.cancel)
    assert await kept is YES
    assert gone.cancelled()
    assert sender.keys == [["kept"]]


async def test_when_all_callers_have_gone_the_call_is_given_up() -> None:
    sender = Sender()
    batcher = Batcher(sender)
    tasks = [ask(batcher, key) for key in "ab"]
    await ticks()
    for task in tasks:
        task.cancel()
    await ticks()
    assert sender.cancelled == 1


async def test_every_caller_waits_as_long_as_it_wants_to() -> None:
    sender = Sender()
    batcher = Batcher(sender)
    hasty, patient = ask(batcher, "hasty", 0.01), ask(batcher, "patient")
    with pytest.raises(gatekey.DeadlineExceeded):
        await hasty
    assert not patient.done()
    sender.open.set()
    assert await patient is YES
    # The call may take as long as the most patient of its callers.
    ((_, timeout),) = sender.sent
    assert LONG - 1 < timeout <= LONG


async def test_closing_ends_the_waiting() -> None:
    sender = Sender()
    batcher = Batcher(sender)
    tasks = [ask(batcher, key) for key in "ab"]
    await ticks()
    tasks.append(ask(batcher, "late"))
    await asyncio.sleep(0)
    await batcher.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in results] == [gatekey.Cancelled] * 3


async def test_batches_are_no_larger_than_the_server_takes() -> None:
    sender = Sender()
    sender.open.set()
    batcher = Batcher(sender)
    keys = [*(str(number) for number in range(1500)), "x" * 600_000, "y" * 300_000, "z" * 300_000]
    await asyncio.gather(*(ask(batcher, key) for key in keys))
    assert [len(batch) for batch in sender.keys] == [1000, 500, 1, 1, 1]
    assert [key for batch in sender.keys for key in batch] == keys


# ---------------------------------------------------------------- against a real server


async def test_questions_that_cannot_travel_spoil_no_others(root: Client, root_token: str, shop: Shop) -> None:
    async with gatekey.AsyncClient(root.address, token=root_token, timeout=10) as client:
        questions = [
            client.check(shop.reader, "campaigns/c1", "read"),
            client.check("x" * (1 << 19), "campaigns/c1", "read"),
            client.check("x" * (1 << 20), "campaigns/c1", "read"),
            client.check("\ud800", "campaigns/c1", "read"),
            client.check(shop.reader, "campaigns//", "read"),
            client.check(shop.reader, "campaigns/c1", "read", min_revision=1 << 60),
            client.check(shop.reader, "campaigns/c1", "write"),
        ]
        first, large, larger, text, path, revision, last = await asyncio.gather(*questions, return_exceptions=True)
    assert isinstance(first, gatekey.Decision)
    assert isinstance(last, gatekey.Decision)
    assert (first.allowed, last.allowed) == (True, False)
    # What the transport does not receive comes without a reason.
    assert isinstance(larger, gatekey.ResourceExhausted)
    problems = [large, text, path, revision]
    assert [getattr(problem, "reason", problem) for problem in problems] == [
        "REQUEST_TOO_LARGE",
        "TEXT_INVALID",
        "RESOURCE_INVALID",
        "REVISION_NOT_REACHED",
    ]


async def test_a_batched_client_answers_each_of_many_callers(root: Client, root_token: str, shop: Shop) -> None:
    actions = ("read", "write")
    async with gatekey.AsyncClient(root.address, token=root_token, timeout=10) as client:

        async def caller(number: int) -> bool:
            expected = [action == "read" for action in actions]
            answers = [await client.check(shop.reader, f"campaigns/c{number}", action) for action in actions]
            missing = [missing.resource for answer in answers for missing in answer.missing_permissions]
            return [answer.allowed for answer in answers] == expected and missing == [f"campaigns/c{number}"]

        assert all(await asyncio.gather(*(caller(number) for number in range(64))))
