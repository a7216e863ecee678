"""What is done to the processes and their database. Every fault undoes itself."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from gatekey.core.lease import LEASE_S

from tests.chaos.caching import CachingProcess
from tests.chaos.database import Database
from tests.chaos.server import BLOCK_S, BLOCK_SIGNAL
from tests.support.server import ServerProcess

SLOW_S = 0.2
LATE_S = 0.8
LATE_FOR_S = 2.0


@dataclass(frozen=True)
class Field:
    """What faults are done to."""

    database: Database
    servers: list[ServerProcess]
    start: Callable[[int, str], Awaitable[ServerProcess]]
    """Starts a server by its number, at an address."""
    token: str
    """Opens everything."""
    rng: random.Random
    caching: list[CachingProcess]
    """Services with client caches."""

    async def outlast_the_lease(self) -> None:
        """Wait for somewhat longer than a lease."""
        await asyncio.sleep(LEASE_S + self.rng.uniform(0.5, 2.5))


Fault = Callable[[Field, int], Awaitable[None]]
"""Does something, to the server of a number if only to one, and returns when it is undone."""


async def half_open(field: Field, number: int) -> None:
    """The connection with the notifications and the polls is silently dropped, one way or both; new ones as well."""
    await field.database.tell("lose", str(number), "changes", field.rng.choice(("ANSWERS", "ALL")))
    try:
        await field.outlast_the_lease()
    finally:
        await field.database.tell("heal")


async def stopped(field: Field, number: int) -> None:
    """A process is stopped and continued."""
    process = field.servers[number].process
    process.send_signal(signal.SIGSTOP)
    try:
        await field.outlast_the_lease()
    finally:
        process.send_signal(signal.SIGCONT)


async def blocked(field: Field, number: int) -> None:
    """A process's event loop does nothing but one thing."""
    field.servers[number].process.send_signal(BLOCK_SIGNAL)
    await asyncio.sleep(BLOCK_S)


async def restarted_database(field: Field, _: int) -> None:
    """PostgreSQL is stopped and started, at once or later."""
    await _start_again(field, "stop")


async def killed_database(field: Field, _: int) -> None:
    """PostgreSQL is killed and started, at once or later."""
    await _start_again(field, "kill")


async def slow_database(field: Field, _: int) -> None:
    """Every round trip to the database takes longer."""
    await field.database.tell("slow", str(SLOW_S))
    try:
        await field.outlast_the_lease()
    finally:
        await field.database.tell("slow", "0")


async def killed(field: Field, number: int) -> None:
    """A process is killed and started again, at the same address."""
    server = field.servers[number]
    await server.kill()
    field.servers[number] = await field.start(number, server.address)


async def client_cut_off(field: Field, number: int) -> None:
    """A client cache hears of servers late, and then no more; nothing tells it that the way is gone."""
    ways = field.caching[number].ways
    for way in ways:
        way.delay_s = LATE_S
    await asyncio.sleep(LATE_FOR_S)
    for way in ways:
        way.jam()
    try:
        await field.outlast_the_lease()
    finally:
        for way in ways:
            way.delay_s = 0
            way.clear()


async def client_stopped(field: Field, number: int) -> None:
    """A process with a client cache is stopped and continued."""
    process = field.caching[number].process
    process.send_signal(signal.SIGSTOP)
    try:
        await field.outlast_the_lease()
    finally:
        process.send_signal(signal.SIGCONT)


async def client_blocked(field: Field, number: int) -> None:
    """The main thread of a process with a client cache does nothing but one thing."""
    field.caching[number].process.send_signal(BLOCK_SIGNAL)
    await asyncio.sleep(BLOCK_S)


async def _start_again(field: Field, end: str) -> None:
    await field.database.tell(end)
    await asyncio.sleep(field.rng.choice((0, field.rng.uniform(0, LEASE_S + 1))))
    await field.database.tell("start")


OF_ONE_PROCESS: Mapping[str, Fault] = {
    "half-open": half_open,
    "stopped": stopped,
    "blocked": blocked,
    "killed": killed,
}
OF_ONE_CLIENT: Mapping[str, Fault] = {
    "client-cut-off": client_cut_off,
    "client-stopped": client_stopped,
    "client-blocked": client_blocked,
}
OF_ALL: Mapping[str, Fault] = {
    "database-restarted": restarted_database,
    "database-killed": killed_database,
    "database-slow": slow_database,
}
NAMES = (*OF_ONE_PROCESS, *OF_ONE_CLIENT, *OF_ALL)
