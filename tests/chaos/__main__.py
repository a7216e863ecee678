"""Looks for stale answers: several processes, a load, and faults. See `docs/development.md`.

Exits with 1 if an answer was wrong, and with 2 if the run proves nothing.
"""

import argparse
import asyncio
import contextlib
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import uvloop
from gatekey.core.secrets import new_secret

from tests.chaos import disabled_guards, faults, report
from tests.chaos.caching import KINDS, CachingProcess
from tests.chaos.database import Database
from tests.chaos.faults import Field
from tests.chaos.history import FaultRun, History, judge
from tests.chaos.load import Load, Target
from tests.support.server import PEPPERS, ServerProcess

_RECOVERY_S = 60
_WATCH_INTERVAL_S = 0.5
_WRONG, _UNUSABLE = 1, 2


class _Server(ServerProcess):
    """`gatekey serve` with what only tests do to it."""

    @classmethod
    def with_disabled_guard(cls, disabled_guard: str) -> "type[_Server]":
        """The class whose processes lack a guard, and end with this one."""
        command = ("setpriv", "--pdeathsig=KILL", sys.executable, "-m", "tests.chaos.server", disabled_guard)
        return type("Server", (cls,), {"command": command})


def main() -> int:
    """Run, judge and tell."""
    arguments = _arguments()
    print(f"seed {arguments.seed}", flush=True)
    try:
        history, origin = uvloop.run(_run(arguments))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return _UNUSABLE
    except Exception:  # noqa: BLE001 - must not look like a wrong answer
        traceback.print_exc()
        return _UNUSABLE
    violations = list(judge(history.timelines))
    print(report.summary(history, violations, origin))
    if violations or history.unexplained():
        return _WRONG
    problems = report.problems(history, arguments)
    print("\n".join(problems) or "No answer was wrong.")
    return _UNUSABLE if problems else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--processes", type=int, default=3, help="how many servers (%(default)s)")
    parser.add_argument(
        "--client-caches", type=int, default=2, help="how many services with client caches (%(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=120, help="for how long, at least (%(default)s)")
    parser.add_argument(
        "--faults", type=_faults, default="all", help=f"all, none, or some of {','.join(faults.NAMES)} (%(default)s)"
    )
    parser.add_argument("--pause", type=float, default=2, help="seconds between two faults (%(default)s)")
    parser.add_argument(
        "--disabled-guard", choices=disabled_guards.NAMES, default=disabled_guards.NONE, help="what is switched off"
    )
    parser.add_argument("--until-found", action="store_true", help="end once a check was wrongly allowed")
    parser.add_argument("--rate", type=float, default=600, help="checks a second, about (%(default)s)")
    parser.add_argument("--groups", type=int, default=8, help="how many mutations at a time (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the faults and their order")
    parser.add_argument("--checks-at-least", type=int, default=0, help="exit with 2 if there were fewer")
    parser.add_argument("--revocations-at-least", type=int, default=0, help="exit with 2 if there were fewer")
    arguments = parser.parse_args()
    if not arguments.client_caches:
        arguments.faults = tuple(name for name in arguments.faults if name not in faults.OF_ONE_CLIENT)
    return arguments


def _faults(text: str) -> tuple[str, ...]:
    if text in {"all", "none"}:
        return faults.NAMES if text == "all" else ()
    names = tuple(text.split(","))
    if not set(names) <= set(faults.NAMES):
        raise argparse.ArgumentTypeError(f"choose from {', '.join(faults.NAMES)}")
    return names


async def _run(arguments: argparse.Namespace) -> tuple[History, float]:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    # One for the faults alone, so that their order does not depend on the load.
    harm, rng = random.Random(arguments.seed), random.Random(arguments.seed)
    async with AsyncExitStack() as resources:
        directory = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="gatekey-chaos-")))
        field = await resources.enter_async_context(_field(directory, arguments, harm))
        targets = []
        for number, server in enumerate([*field.servers, *field.caching]):
            target = Target(number, server.address, field.token, caching=number >= len(field.servers))
            resources.push_async_callback(target.close)
            targets.append(target)
        load = Load(targets, arguments.groups, rng, arguments.rate)
        await load.set_up()
        origin = time.monotonic()
        async with asyncio.timeout(_patience_s(arguments)), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(load.run())
            watching = tasks.create_task(_watch(field))
            await _do_harm(arguments, field, load, origin + arguments.seconds)
            load.stop()
            await running
            watching.cancel()
    return load.history, origin


@asynccontextmanager
async def _field(directory: Path, arguments: argparse.Namespace, rng: random.Random) -> AsyncIterator[Field]:
    """A database with a schema, servers, and services with client caches."""
    processes, disabled_guard = arguments.processes, arguments.disabled_guard
    directory.chmod(0o711)
    token = new_secret("gk_")
    database = await Database.start(directory, processes)
    servers: list[ServerProcess] = []
    kind = _Server.with_disabled_guard(disabled_guard)

    async def start(number: int, address: str) -> ServerProcess:
        return await kind.start(
            {
                "GATEKEY_DATABASE_URL": database.url(number),
                "GATEKEY_LISTEN": address,
                "GATEKEY_PEPPERS": PEPPERS,
                "GATEKEY_ROOT_TOKEN": token,
            }
        )

    try:
        for number in range(processes):
            servers.append(await start(number, "127.0.0.1:0"))  # noqa: PERF401 - one that starts may fail
        if disabled_guard in disabled_guards.IN_DATABASE:
            await database.execute(disabled_guards.IN_DATABASE[disabled_guard])
        async with AsyncExitStack() as clients:
            caching = [
                await clients.enter_async_context(
                    CachingProcess.open(
                        disabled_guard, KINDS[number % 2], [server.address for server in servers], token
                    )
                )
                for number in range(arguments.client_caches)
            ]
            yield Field(database, servers, start, token, rng, caching)
    finally:
        for server in ServerProcess.started:
            await server.kill()
        await database.stop()


async def _watch(field: Field) -> None:
    """Fail when a server ends that was not killed."""
    while True:
        for number, server in enumerate([*field.servers, *field.caching]):
            if server.process.returncode not in {None, -signal.SIGKILL}:
                raise RuntimeError(f"process {number} has ended: {''.join(server.output[-20:])}")
        await asyncio.sleep(_WATCH_INTERVAL_S)


def _patience_s(arguments: argparse.Namespace) -> float:
    return float(arguments.seconds + _RECOVERY_S * (2 + len(arguments.faults)))


async def _do_harm(arguments: argparse.Namespace, field: Field, load: Load, until: float) -> None:
    """One fault after the other, in random order and all of them again, with pauses to recover; each at least once."""
    waiting = _shuffled(arguments.faults, field.rng)
    missing = set(waiting)
    found = load.found if arguments.until_found else asyncio.Event()
    while not found.is_set() and (missing or time.monotonic() < until):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(arguments.pause):
                await found.wait()
        if waiting and not found.is_set():
            fault = waiting.pop()
            missing.discard(fault)
            await _do(fault, field, load)
        waiting = waiting or _shuffled(arguments.faults, field.rng)


def _shuffled(names: Sequence[str], rng: random.Random) -> list[str]:
    return rng.sample(names, len(names))


async def _do(name: str, field: Field, load: Load) -> None:
    number, of_number = None, 0
    if name in faults.OF_ONE_PROCESS:
        number = of_number = field.rng.randrange(len(field.servers))
    elif name in faults.OF_ONE_CLIENT:
        of_number = field.rng.randrange(len(field.caching))
        number = len(field.servers) + of_number
    fault = {**faults.OF_ONE_PROCESS, **faults.OF_ONE_CLIENT, **faults.OF_ALL}[name]
    start = time.monotonic()
    await fault(field, of_number)
    end = time.monotonic()
    async with asyncio.timeout(_RECOVERY_S):
        await load.recover()
    load.history.faults.append(FaultRun(name, number, start, end, time.monotonic()))


if __name__ == "__main__":
    sys.exit(main())
