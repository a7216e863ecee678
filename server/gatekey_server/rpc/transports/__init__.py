"""What carries the calls: grpcio, or pygrpc-native, which is several times faster and can do less."""

import enum
import importlib.util
from dataclasses import dataclass
from typing import Protocol

import grpc

# Beyond this a message is refused before it is read, with a status but without details.
MAX_MESSAGE_BYTES = 4 << 20
MAX_METADATA_BYTES = 16 << 10
KEEPALIVE_TIME_MS = 60_000


class Transport(enum.StrEnum):
    """Which of them is wanted."""

    AUTO = "auto"
    """The native one where it is installed and can do what is asked for."""
    GRPCIO = "grpcio"
    NATIVE = "native"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which one it is, never `AUTO`, and why."""

    transport: Transport
    reason: str


class TransportError(Exception):
    """The transport that is wanted cannot be had; the text says why."""


class GrpcServer(Protocol):
    """What a node needs of a transport."""

    def add_insecure_port(self, address: str) -> int:
        """Listen; answers the port. Raises `RuntimeError`."""

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Listen for TLS; answers the port. Raises `RuntimeError`."""

    async def start(self) -> None:
        """Begin to answer."""

    async def stop(self, grace: float | None) -> None:
        """Take no more calls, and end those that are not answered within `grace` seconds."""


def choose(wanted: Transport, *, tls: bool) -> Choice:
    """Choose a transport. Raises `TransportError`."""
    if wanted is Transport.GRPCIO:
        return Choice(Transport.GRPCIO, "asked for")
    obstacle = _obstacle(tls=tls)
    if obstacle is None:
        return Choice(Transport.NATIVE, "asked for" if wanted is Transport.NATIVE else "the faster one")
    if wanted is Transport.NATIVE:
        raise TransportError(obstacle)
    return Choice(Transport.GRPCIO, obstacle)


def _obstacle(*, tls: bool) -> str | None:
    if tls:
        return "pygrpc-native has no TLS"
    if importlib.util.find_spec("pygrpc_native") is None:
        return "pygrpc-native is not installed"
    return None
