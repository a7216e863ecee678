"""Long work lets short calls go first, and is done one call at a time."""

import asyncio
import time

from gatekey_server.store import pauses


async def spin(log: list[str], name: str, steps: int) -> None:
    """Long work of so many steps, each of which is as long as a turn may be."""
    rest = pauses.Pauses()
    for _ in range(steps):
        begin = time.perf_counter()
        while time.perf_counter() - begin <= pauses.MAX_TURN_S:
            pass
        log.append(name)
        await rest()


async def test_calls_with_long_work_take_turns_and_others_have_theirs_between() -> None:
    log: list[str] = []

    async def tick() -> None:
        while True:
            log.append(".")
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    await asyncio.gather(*(spin(log, name, 5) for name in "abc"))
    ticking.cancel()
    steps = "".join(log).split(".")
    # What comes before its first pause is of its own accord.
    assert [step for step in steps[3:] if len(step) > 1] == []
    assert {step for step in steps if step} == {*"abc"} | {step for step in steps[:3] if step}


async def test_long_work_waits_for_calls_that_have_just_come_but_not_for_ever() -> None:
    calls, over = pauses.Calls(), asyncio.Event()
    call = asyncio.create_task(over.wait())
    calls.begin(call)
    begin = time.perf_counter()
    await calls.rest()
    assert time.perf_counter() - begin >= pauses.MAX_REST_S
    # One that takes long itself is nothing to wait for, nor is one that is over.
    calls.forget(call)
    begin = time.perf_counter()
    await asyncio.wait_for(calls.rest(), pauses.MAX_REST_S)
    assert time.perf_counter() - begin < pauses.MAX_REST_S
    over.set()
    await call


async def test_a_call_that_has_waited_for_long_is_not_waited_for() -> None:
    calls = pauses.Calls()
    call = asyncio.create_task(asyncio.sleep(60))
    calls.begin(call)
    await asyncio.sleep(pauses.LATELY_S)
    await asyncio.wait_for(calls.rest(), pauses.MAX_REST_S)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert calls._began == {}
