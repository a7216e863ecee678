"""A service that has a client cache and does nothing but check: `python -m tests.chaos.caching GUARD KIND serve`.

It is asked as a server is, and answers by what its client decides.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, cast

import gatekey
import grpc
from gatekey.v1 import check_service_pb2 as pb
from gatekey.v1 import check_service_pb2_grpc

from tests.chaos import disabled_guards
from tests.chaos.server import BLOCK_SIGNAL, block
from tests.client_python.network import Way
from tests.support.server import ServerProcess

KINDS = ("threads", "event-loop")

_TIMEOUT_S = 5.0
# More than there are checks that wait for a server: those that need none come through.
_THREADS = 500

DECIDED_BY_CACHE = "decided by the cache"
"""The message of an answer that no server was asked for."""


class CachingProcess(ServerProcess):
    """Such a service, and its ways to the servers."""

    ways: Sequence[Way] = ()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, disabled_guard: str, kind: str, servers: Sequence[str], token: str
    ) -> AsyncIterator["CachingProcess"]:
        """Start a service."""
        command = ("setpriv", "--pdeathsig=KILL", sys.executable, "-m", "tests.chaos.caching", disabled_guard, kind)
        ways = [Way(address) for address in servers]
        for way in ways:
            await way.open()
        try:
            starting = cast("type[CachingProcess]", type("StartedCachingProcess", (cls,), {"command": command}))
            process = await starting.start(
                {"GATEKEY_ADDRESS": ",".join(way.address for way in ways), "GATEKEY_TOKEN": token}
            )
            process.ways = ways
            yield process
        finally:
            for way in ways:
                await way.close()


class _Checks(check_service_pb2_grpc.CheckServiceServicer):
    def __init__(self, client: gatekey.Client | gatekey.AsyncClient) -> None:
        self._client = client

    async def Check(self, request: pb.CheckRequest, context: Any) -> pb.CheckResponse:  # noqa: N802
        question = request.key, request.resource, request.action
        try:
            if isinstance(self._client, gatekey.Client):
                return await asyncio.to_thread(self._check, *question)
            return self._recall(*question) or _write(await self._client.check(*question))
        except gatekey.ApiError as error:
            await context.abort(error.code, str(error))
            raise

    def _check(self, key: str, resource: str, action: str) -> pb.CheckResponse:
        assert isinstance(self._client, gatekey.Client)
        return self._recall(key, resource, action) or _write(self._client.check(key, resource, action))

    def _recall(self, key: str, resource: str, action: str) -> pb.CheckResponse | None:
        """What the client decides without a server; it would do the same again."""
        assert self._client._local_cache is not None
        decision = self._client._local_cache.recall(key, resource, action, None, None, 0)
        return None if decision is None else _write(decision, DECIDED_BY_CACHE)

    async def BatchCheck(self, request: pb.BatchCheckRequest, context: Any) -> pb.BatchCheckResponse:  # noqa: N802
        questions = [gatekey.Question(each.key, each.resource, each.action) for each in request.checks]
        try:
            if isinstance(self._client, gatekey.Client):
                results = await asyncio.to_thread(self._client.check_many, questions)
            else:
                results = await self._client.check_many(questions)
        except gatekey.ApiError as error:
            await context.abort(error.code, str(error))
            raise
        return pb.BatchCheckResponse(results=[_write_result(result) for result in results])


def _write_result(result: gatekey.Decision | gatekey.CheckFailed) -> pb.BatchCheckResult:
    if isinstance(result, gatekey.CheckFailed):
        code, message = result.error.code.value[0], result.error.message
        return pb.BatchCheckResult(error=pb.CheckError(code=code, message=message))
    return pb.BatchCheckResult(response=_write(result))


def _write(decision: gatekey.Decision, message: str = "") -> pb.CheckResponse:
    reason = pb.CheckResponse.Reason.Value(f"REASON_{decision.reason}")
    return pb.CheckResponse(allowed=decision.allowed, reason=reason, message=message)


async def _serve(kind: str) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port(os.environ["GATEKEY_LISTEN"])
    options: dict[str, Any] = {"timeout": _TIMEOUT_S, "cache": True}
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
    client = gatekey.Client(**options) if kind == "threads" else gatekey.AsyncClient(**options)
    check_service_pb2_grpc.add_CheckServiceServicer_to_server(_Checks(client), server)  # type: ignore[abstract]
    await server.start()
    sys.stdout.write(f"Gatekey serves on 127.0.0.1:{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


def main() -> None:
    """Serve."""
    disabled_guard, kind = sys.argv[1:3]
    if disabled_guard in disabled_guards.IN_CLIENTS:
        disabled_guards.IN_CLIENTS[disabled_guard]()
    signal.signal(BLOCK_SIGNAL, block)
    asyncio.run(_serve(kind))


if __name__ == "__main__":
    main()
