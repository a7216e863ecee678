"""Servers under test: started on chosen cores, measured by the CPU time that they and their children take."""

import asyncio
import dataclasses
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from bench.load import Plan, Result

ROOT = Path(__file__).resolve().parents[1]
ALL_CORES = frozenset(os.sched_getaffinity(0))
SERVER_CORE = frozenset(sorted(ALL_CORES)[:1])
LOAD_CORE = frozenset(sorted(ALL_CORES)[-1:])

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_START_TIMEOUT_S = 60


@asynccontextmanager
async def process(
    *command: str, cores: frozenset[int] = ALL_CORES, env: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a process on some cores; it is stopped at the end."""
    running = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    assert running.stderr is not None
    drain = asyncio.create_task(_drain(running.stderr))
    try:
        yield running
    finally:
        if running.returncode is None:
            running.send_signal(signal.SIGTERM)
        await running.wait()
        await drain


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(1 << 16):
        pass


async def answers(address: str) -> None:
    """Wait until something listens at an address."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(_START_TIMEOUT_S):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return


def cpu_s(pid: int) -> float:
    """The CPU time that a process and its children have taken, in seconds."""
    return sum(_ticks(each) for each in tree(pid)) / _TICKS


def memory_bytes(pid: int | Literal["self"]) -> int:
    """The resident memory of a process and its children."""
    if pid == "self":
        pid = os.getpid()
    return sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) * _PAGE for each in tree(pid))


def tree(pid: int) -> Sequence[int]:
    """A process and all that come from it."""
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _children(task)]
    return [pid, *(each for child in children for each in tree(child))]


def _children(task: Path) -> list[str]:
    try:
        return (task / "children").read_text().split()
    except FileNotFoundError:
        return []


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@dataclasses.dataclass(frozen=True)
class Measured:
    """A load, and what it cost the server."""

    result: Result
    cpu_s: float

    @property
    def rate(self) -> float:
        """Right answers a second."""
        return self.result.right / self.result.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of the server's CPU for each right answer."""
        return self.cpu_s / max(self.result.right, 1) * 1e6


async def measure(plan: Plan, server_pid: int, cores: frozenset[int] = LOAD_CORE) -> Measured:
    """Put a load on a server, from a process of its own. Raises `RuntimeError` for a wrong answer."""
    generator = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bench.load"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    before = cpu_s(server_pid)
    try:
        output, _ = await generator.communicate(json.dumps(dataclasses.asdict(plan)).encode())
    finally:
        if generator.returncode is None:
            generator.kill()
            await generator.wait()
    spent = cpu_s(server_pid) - before
    if generator.returncode:
        raise RuntimeError(f"the load failed: {plan.path}")
    result = Result(**json.loads(output))
    if result.wrong:
        raise RuntimeError(f"{result.wrong} wrong answers of {result.right + result.wrong + result.refused}: {plan}")
    return Measured(result, spent)
