"""What lies between a client and a server: a way that can be cut or jammed, and names that can move."""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


class Way:
    """Passes connections on to a server, until it is jammed or closed. To be used in an `async with`."""

    def __init__(self, target: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self._target = target
        self._host, self._port = host, port
        self._open = asyncio.Event()
        self._open.set()
        self._pipes: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.arrived = 0
        """How many pieces of data came for the server."""
        self.delay_s = 0.0
        """By how much answers come later. To be made less only while the way is jammed, and everything has come."""
        self.passed = 0
        """How many pieces of data went to the server."""

    @property
    def address(self) -> str:
        """Where clients connect to."""
        return f"{self._host}:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    def jam(self) -> None:
        """Let nothing through, and keep all connections."""
        self._open.clear()

    def clear(self) -> None:
        """Let everything through again."""
        self._open.set()

    async def open(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._connect, self._host, self._port, reuse_address=True)
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Cut all connections, and accept none."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    async def __aenter__(self) -> "Way":
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._target.rsplit(":", 1)
        try:
            there, back = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        for source, sink, counts in ((reader, back, True), (there, writer, False)):
            pipe = asyncio.create_task(self._pass_on(source, sink, counts=counts))
            self._pipes.add(pipe)
            pipe.add_done_callback(self._pipes.discard)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, counts: bool) -> None:
        try:
            # The second is what a loop says of a connection that was closed meanwhile.
            with contextlib.suppress(ConnectionError, RuntimeError):
                while data := await source.read(1 << 16):
                    self.arrived += counts
                    await self._open.wait()
                    if self.delay_s and not counts:
                        # It comes through, even if the way is jammed meanwhile.
                        asyncio.get_running_loop().call_later(self.delay_s, sink.write, data)
                        continue
                    self.passed += counts
                    sink.write(data)
                    await sink.drain()
        finally:
            sink.close()


class Names(asyncio.DatagramProtocol):
    """A name server with one answer, which can be changed."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.asked = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, sender: Any) -> None:
        end = data.index(b"\0", 12) + 5
        question, kind = data[12:end], data[end - 4 : end - 2]
        self.asked += 1
        # Only for IPv4 is there an answer; it must not be remembered.
        answer = b""
        if kind == b"\0\1":
            answer = b"\xc0\x0c\0\1\0\1" + bytes(4) + b"\0\4" + ipaddress.ip_address(self.address).packed
        counts = b"\0\1" + len(answer[:1]).to_bytes(2, "big") + bytes(4)
        self._transport.sendto(data[:2] + b"\x81\x80" + counts + question + answer, sender)


@asynccontextmanager
async def name_server(address: str) -> AsyncIterator[tuple[Names, int]]:
    """A name server on this machine, and its port."""
    loop = asyncio.get_running_loop()
    transport, names = await loop.create_datagram_endpoint(lambda: Names(address), ("127.0.0.1", 0))
    try:
        yield names, transport.get_extra_info("sockname")[1]
    finally:
        transport.close()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
