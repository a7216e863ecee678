"""Cerbos from its npm package: a policy server that decides in memory, without a database.

Its policy says what the example product's roles say. The messages are redeclared here as far as they are used; the
field numbers are those of cerbos.request.v1, cerbos.engine.v1 and cerbos.response.v1.
"""

import asyncio
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from bench.load import Plan
from bench.processes import answers, process

PATH = "/cerbos.svc.v1.CerbosService/CheckResources"
PACKAGE = "cerbos@0.51.0"

_POLICY = """\
apiVersion: api.cerbos.dev/v1
resourcePolicy:
  resource: campaigns
  version: default
  rules:
    - actions: ["read", "write"]
      effect: EFFECT_ALLOW
      roles: ["owner"]
"""
_CONFIG = """\
server:
  httpListenAddr: "127.0.0.1:{http}"
  grpcListenAddr: "127.0.0.1:{grpc}"
storage:
  driver: disk
  disk:
    directory: "{policies}"
telemetry:
  disabled: true
"""
_ALLOW = 1

_STRING, _MESSAGE, _ENUM = 9, 11, 5
_MESSAGES: dict[str, tuple[tuple[str, int, int, bool, str], ...]] = {
    "Principal": (("id", 1, _STRING, False, ""), ("roles", 3, _STRING, True, "")),
    "Resource": (("kind", 1, _STRING, False, ""), ("id", 3, _STRING, False, "")),
    "Entry": (("actions", 1, _STRING, True, ""), ("resource", 2, _MESSAGE, False, "Resource")),
    "Request": (("principal", 3, _MESSAGE, False, "Principal"), ("resources", 4, _MESSAGE, True, "Entry")),
    "Action": (("name", 1, _STRING, False, ""), ("effect", 2, _ENUM, False, "")),
    "Result": (("actions", 2, _MESSAGE, True, "Action"),),
    "Response": (("results", 2, _MESSAGE, True, "Result"),),
}


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="bench/cerbos.proto", package="bench.cerbos", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated, of in fields:
            made = message.field.add(name=field, number=number, label=3 if repeated else 1)
            # A map is a list of pairs on the wire, and an enum a number.
            made.type = cast("Any", kind)
            if of:
                made.type_name = f".bench.cerbos.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"bench.cerbos.{name}")) for name in _MESSAGES
    }


_CLASSES = _classes()


@dataclass(frozen=True)
class Cerbos:
    """A server that answers."""

    address: str
    pid: int
    version: str

    def plan(self, bodies: Path, **changes: object) -> Plan:
        """A load of checks."""
        # An answer names the request's resources; the first field of a right one is a result.
        return Plan(address=self.address, path=PATH, bodies=str(bodies), expect="12", **changes)  # type: ignore[arg-type]


def request(resources: int) -> bytes:
    """May an owner write so many campaigns?"""
    message = _CLASSES["Request"]()
    message.principal.id = "products/heyoo/tenants/t0/members/owner"
    message.principal.roles.append("owner")
    for number in range(resources):
        entry = message.resources.add()
        entry.actions.append("write")
        entry.resource.kind, entry.resource.id = "campaigns", f"spring{number}"
    data: bytes = message.SerializeToString()
    return data


async def assert_right(cerbos: Cerbos, resources: int) -> None:
    """Ask once, and look at every decision."""
    async with grpc.aio.insecure_channel(cerbos.address) as channel:
        call: Any = channel.unary_unary(PATH)
        answer = _CLASSES["Response"].FromString(await call(request(resources)))
    effects = [action.effect for result in answer.results for action in result.actions]
    assert effects == [_ALLOW] * resources, answer


@asynccontextmanager
async def cerbos(cores: frozenset[int]) -> AsyncIterator[Cerbos | str]:
    """Start it; yields why not where it cannot be had."""
    npm = shutil.which("npm")
    if npm is None:
        yield "npm is missing"
        return
    with tempfile.TemporaryDirectory(prefix="gatekey-bench-") as directory:
        home = Path(directory)
        async with process(npm, "install", "--no-audit", "--no-fund", PACKAGE, cwd=home) as install:
            if await install.wait():
                yield f"npm cannot install {PACKAGE}"
                return
        # The package's own command starts the program as a child; its CPU time is counted there.
        (program,) = (path for path in home.glob("node_modules/@cerbos/*/cerbos*") if path.stat().st_size > 1 << 20)
        policies = home / "policies"
        policies.mkdir()
        (policies / "campaigns.yaml").write_text(_POLICY)
        http, grpc_port = _free_port(), _free_port()
        config = home / "config.yaml"
        config.write_text(_CONFIG.format(http=http, grpc=grpc_port, policies=policies))
        env = {"GOMAXPROCS": str(len(cores)), "CERBOS_NO_TELEMETRY": "1"}
        async with process(str(program), "server", f"--config={config}", cores=cores, env=env) as server:
            drain = asyncio.create_task(_drain(server.stdout))
            address = f"127.0.0.1:{grpc_port}"
            await answers(address)
            yield Cerbos(address, server.pid, PACKAGE)
            server.terminate()
            await drain


async def _drain(stream: asyncio.StreamReader | None) -> None:
    assert stream is not None
    while await stream.read(1 << 16):
        pass


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
