"""Bytes on the socket: conversations that are right, damaged at random, and noise."""

import asyncio
import contextlib
import random
import struct

from gatekey.v1 import check_service_pb2
from grpc_health.v1 import health_pb2
from h2.config import H2Configuration
from h2.connection import H2Connection

from tests.attack.h2_attacker import BATCH_CHECK, CHECK, REFLECTION, WATCH, frame, gzip_bomb

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD = 9
_BOMB = gzip_bomb()
_MAX_BYTES = 1 << 20
"""How much one conversation is made to repeat."""
_PATHS = (
    *(CHECK, BATCH_CHECK, WATCH, REFLECTION, "/gatekey.v1.ApiKeyService/ListApiKeys"),
    *("/gatekey.v1.ProductService/ListProducts", "/gatekey.v1.CacheService/Sync", "/grpc.health.v1.Health/Check"),
    *("/", "*", "", "/gatekey.v1.CheckService/Check/", "/no.Such/Method", "/" + "x" * 5000),
)
_NOISE = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /gatekey.v1.CheckService/Check HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n",
    b"GET / HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
    b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(range(160)),
    b"\x16\x03\x01\xff\xff" + b"\x01" * 2000,
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    b"",
    b"\n" * 10_000,
    PREFACE,
    PREFACE[:-1],
    PREFACE + b"\xff" * 100,
    PREFACE + bytes(200),
)


class Bytes:
    """Makes what is sent over one connection."""

    def __init__(self, rng: random.Random, token: str) -> None:
        self._rng = rng
        self._token = token

    def conversation(self) -> bytes:
        """A few calls as a client makes them, each of them right or nearly so."""
        rng = self._rng
        # It is to write down what no client would send as well.
        config = H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
        client = H2Connection(config)
        client.initiate_connection()
        for _ in range(rng.choice((1, 2, 5))):
            stream = client.get_next_available_stream_id()
            headers = self._headers()
            body = b"".join(frame(message, compressed=rng.random() < 0.05) for message in self._messages())
            client.send_headers(stream, headers, end_stream=not body)
            if body:
                for start in range(0, len(body), 10_000):
                    client.send_data(stream, body[start : start + 10_000], end_stream=start + 10_000 >= len(body))
            if rng.random() < 0.2:
                client.reset_stream(stream, error_code=rng.randrange(16))
            if rng.random() < 0.2:
                client.ping(b"attacked")
        return bytes(client.data_to_send())

    def _headers(self) -> list[tuple[str, str]]:
        rng = self._rng
        headers = [
            (":method", rng.choice(("POST", "POST", "POST", "GET", "CONNECT", ""))),
            (":scheme", rng.choice(("http", "http", "https", "gopher"))),
            (":path", rng.choice(_PATHS) if rng.random() < 0.5 else CHECK),
            (":authority", "gatekey"),
            ("te", "trailers"),
            ("content-type", rng.choice(("application/grpc", "application/grpc", "application/json", "\x00"))),
            ("authorization", rng.choice((f"Bearer {self._token}", "Bearer x", "Bearer \xa0", "\x1b[31m"))),
        ]
        for name, values in {
            "grpc-timeout": ("1S", "99999999S", "-1S", "1", "0n", "x"),
            "grpc-encoding": ("gzip", "identity", "\x07"),
            "gatekey-actor": ("products/heyoo/tenants/acme/members/owner", "a\x00b", "\xff"),
            "x-junk-bin": ("!!!", "AAAA", "A"),
            "cookie": ("c" * 9000,),
        }.items():
            if rng.random() < 0.1:
                headers.append((name, rng.choice(values)))
        if rng.random() < 0.1:
            rng.shuffle(headers)
        if rng.random() < 0.1:
            headers.pop(rng.randrange(len(headers)))
        return headers

    def _messages(self) -> list[bytes]:
        rng = self._rng
        check = check_service_pb2.CheckRequest(key="hey_x", resource="campaigns", action="read")
        messages = [
            check.SerializeToString(),
            check_service_pb2.BatchCheckRequest(checks=[check] * 3).SerializeToString(),
            health_pb2.HealthCheckRequest(service="x").SerializeToString(),
            b"",
            _BOMB,
            rng.randbytes(50),
        ]
        return rng.choices(messages, weights=(10, 3, 3, 3, 1, 2), k=rng.choice((0, 1, 1, 1, 2)))

    def damaged(self) -> bytes:
        """A conversation with damage to its frames and bytes; or noise."""
        rng = self._rng
        if rng.random() < 0.15:
            return rng.choice((*_NOISE, rng.randbytes(rng.choice((1, 100, 5000)))))
        data = self.conversation()
        for _ in range(rng.choice((0, 1, 1, 2, 6))):
            data = self._damage(data)
        if rng.random() < 0.1:
            other = self.conversation()
            data = data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]
        return data

    def _damage(self, data: bytes) -> bytes:
        rng = self._rng
        if rng.random() < 0.3 or not data.startswith(PREFACE):
            return self._damage_bytes(data)
        frames = _frames(data[len(PREFACE) :])
        if not frames:
            return data
        number = rng.randrange(len(frames))
        way = rng.randrange(8)
        if way == 0:
            frames.insert(rng.randrange(len(frames) + 1), frames[number])
        elif way == 1:
            del frames[number]
        elif way == 2:
            rng.shuffle(frames)
        elif way == 3:
            kind, flags, stream = rng.randrange(12), rng.randrange(256), rng.choice((0, 1, 2, 3, 2**31 - 1, 2**31))
            frames.insert(number, _frame(kind, flags, stream, rng.randbytes(rng.choice((0, 1, 4, 5, 8, 64, 17_000)))))
        elif way == 4:
            # A length that is not true.
            frames[number] = struct.pack(">I", rng.randrange(1 << 24))[1:] + frames[number][3:]
        elif way == 5:
            frames *= min(rng.choice((2, 50)), max(1, _MAX_BYTES // len(data)))
        else:
            at = rng.randrange(3, _HEAD)
            changed = bytearray(frames[number])
            changed[at] = rng.randrange(256)
            frames[number] = bytes(changed)
        return PREFACE + b"".join(frames)

    def _damage_bytes(self, data: bytes) -> bytes:
        rng = self._rng
        if not data:
            return rng.randbytes(10)
        way = rng.randrange(3)
        at = rng.randrange(len(data))
        if way == 0:
            return data[:at]
        if way == 1:
            return data[:at] + rng.randbytes(rng.choice((1, 9, 100))) + data[at:]
        return data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _frames(data: bytes) -> list[bytes]:
    frames, at = [], 0
    while at + _HEAD <= len(data):
        end = at + _HEAD + int.from_bytes(data[at : at + 3], "big")
        frames.append(data[at:end])
        at = end
    return frames


async def send(address: str, data: bytes, rng: random.Random, patience_s: float = 0.2) -> bytes:
    """Send bytes over a connection of their own, in parts; answers what comes back for a moment."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = bytearray()
    try:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(patience_s):
                await asyncio.gather(_write(writer, data, rng), _read(reader, answer))
    finally:
        writer.transport.abort()
    return bytes(answer)


async def _write(writer: asyncio.StreamWriter, data: bytes, rng: random.Random) -> None:
    while data:
        size = rng.choice((len(data), len(data), 1 + rng.randrange(len(data))))
        writer.write(data[:size])
        await writer.drain()
        data = data[size:]
    if rng.random() < 0.3:
        writer.write_eof()


async def _read(reader: asyncio.StreamReader, answer: bytearray) -> None:
    while part := await reader.read(1 << 16):
        answer += part
