"""A service that asks every 10 ms, as a process of its own: `python -m tests.attack.victim`.

It reads what it needs as a line of JSON, and then for how many seconds to ask, line by line. After each it writes how
long its checks took, and which were lost.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
from gatekey.v1 import check_service_pb2, check_service_pb2_grpc

INTERVAL_S = 0.01
TIMEOUT_S = 5
RESOURCE, ACTION = "campaigns", "read"
# Every so many checks, one has a connection of its own. The number is odd, so that it is about warm and cold keys.
_NEW_CONNECTION_EVERY = 15


@dataclass(frozen=True)
class Needs:
    """What a victim is told first."""

    address: str
    ca: str | None
    token: str
    warm: list[str]
    """Keys to ask for again and again."""
    cold: list[str]
    """Keys to ask for once."""


@dataclass(frozen=True)
class Found:
    """What a victim tells of some time."""

    ms: list[float]
    """How long each check took that was answered well."""
    lost: list[str]
    """What became of the others."""


class _Victim:
    def __init__(self, needs: Needs) -> None:
        self._needs = needs
        self._cold: Iterator[str] = iter(needs.cold)
        self._warm: Iterator[str] = itertools.cycle(needs.warm)
        self._credentials = grpc.ssl_channel_credentials(Path(needs.ca).read_bytes()) if needs.ca else None
        self._old = self._connect()

    async def ask_for(self, seconds: float) -> Found:
        """Ask every 10 ms, whether those before were answered or not."""
        for key in self._needs.warm:
            await self._answer(self._old, key)
        found, tasks, begin = Found([], []), [], time.perf_counter()
        for number in range(int(seconds / INTERVAL_S)):
            await asyncio.sleep(max(0, begin + number * INTERVAL_S - time.perf_counter()))
            tasks.append(asyncio.create_task(self._ask(number, found)))
        await asyncio.gather(*tasks)
        return found

    async def _ask(self, number: int, found: Found) -> None:
        key = next(self._cold if number % 2 else self._warm)
        is_new = number % _NEW_CONNECTION_EVERY == 0
        began = time.perf_counter()
        channel = self._connect() if is_new else self._old
        try:
            reason = await self._answer(channel, key)
            took_ms = (time.perf_counter() - began) * 1000
            if reason == check_service_pb2.CheckResponse.REASON_ALLOWED:
                found.ms.append(round(took_ms, 2))
            else:
                found.lost.append(check_service_pb2.CheckResponse.Reason.Name(reason))
        except grpc.aio.AioRpcError as error:
            found.lost.append(f"{error.code().name} {error.details()}")
        finally:
            if is_new:
                await channel.close()

    async def _answer(self, channel: grpc.aio.Channel, key: str) -> "check_service_pb2.CheckResponse.Reason.ValueType":
        request = check_service_pb2.CheckRequest(key=key, resource=RESOURCE, action=ACTION)
        metadata = (("authorization", f"Bearer {self._needs.token}"),)
        stub = check_service_pb2_grpc.CheckServiceStub(channel)
        return (await stub.Check(request, metadata=metadata, timeout=TIMEOUT_S)).reason

    def _connect(self) -> grpc.aio.Channel:
        # Else clients of the same server share a connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._needs.address, options)
        return grpc.aio.secure_channel(self._needs.address, self._credentials, options)


async def _main() -> None:
    loop = asyncio.get_running_loop()
    victim = _Victim(Needs(**json.loads(await loop.run_in_executor(None, sys.stdin.readline))))
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(asdict(await victim.ask_for(float(line)))), flush=True)


if __name__ == "__main__":
    asyncio.run(_main())
