"""Short runs of `make chaos`: nothing stale with all guards, and something without any one of them.

That the second is found shows that the first means something.
"""

import asyncio
import sys

import pytest

from tests.chaos import disabled_guards
from tests.chaos.history import Kind
from tests.support.server import ROOT

pytestmark = pytest.mark.drill

_TIMEOUT_S = 240

# Without a lease, a process that hears of nothing goes on answering.
_FAULTS = {
    "client-clock": ("--faults", "client-cut-off", "--pause", "0.5", "--groups", "24"),
    "lease": ("--faults", "half-open", "--pause", "0.5"),
}


async def chaos(*arguments: str) -> tuple[int, str]:
    """Do a run; answers its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.chaos", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_no_answer_is_stale_whatever_happens() -> None:
    code, output = await chaos(
        *("--seconds", "12", "--pause", "0.5", "--faults", "stopped,database-killed"),
        *("--checks-at-least", "200", "--revocations-at-least", "10"),
    )
    assert code == 0, output


@pytest.mark.parametrize(
    "disabled_guard", [*disabled_guards.IN_SERVERS, *disabled_guards.IN_CLIENTS, *disabled_guards.IN_DATABASE]
)
async def test_without_a_guard_a_stale_answer_is_found(disabled_guard: str) -> None:
    code, output = await chaos(
        *("--disabled-guard", disabled_guard, "--until-found", "--seconds", "120", "--processes", "2"),
        # Enough at a time for one to overtake another, however busy the machine is.
        *("--groups", "16"),
        *_FAULTS.get(disabled_guard, ("--faults", "none")),
    )
    assert code == 1, output
    assert f"{Kind.ALLOWED}: products/chaos" in output, output
