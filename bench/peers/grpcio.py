"""`grpc.aio` with uvloop that parses a check and answers it without a look: what the transport alone costs.

`python -m bench.peers.grpcio` is the server; it prints its port.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import uvloop
from gatekey.v1 import check_service_pb2 as pb

from bench.gatekey import ALLOWED, CHECK
from bench.load import Plan
from bench.processes import process


@dataclass(frozen=True)
class Trivial:
    """A server that answers."""

    address: str
    pid: int

    def plan(self, bodies: Path, **changes: object) -> Plan:
        """A load of checks."""
        return Plan(address=self.address, path=CHECK, bodies=str(bodies), expect=ALLOWED, **changes)  # type: ignore[arg-type]


class _Servicer:
    async def Check(self, request: pb.CheckRequest, context: object) -> pb.CheckResponse:  # noqa: N802
        return pb.CheckResponse(allowed=bool(request.key), reason=pb.CheckResponse.REASON_ALLOWED)


@asynccontextmanager
async def trivial(cores: frozenset[int]) -> AsyncIterator[Trivial]:
    """Start it."""
    async with process(sys.executable, "-m", "bench.peers.grpcio", cores=cores) as server:
        assert server.stdout is not None
        port = int(await server.stdout.readline())
        yield Trivial(f"127.0.0.1:{port}", server.pid)


async def _serve() -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(
        _Servicer().Check, pb.CheckRequest.FromString, pb.CheckResponse.SerializeToString
    )
    server.add_registered_method_handlers("gatekey.v1.CheckService", {"Check": handler})
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve())
