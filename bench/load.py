"""A load of unary gRPC calls, cheap enough to keep a fast server busy from one core, that looks at every answer.

`python -m bench.load` reads a `Plan` as JSON from standard input and writes a `Result` as JSON. It speaks just enough
HTTP/2: the headers of a call are made once, and an answer counts as right if its message begins with the bytes that
are expected. A refusal (`RESOURCE_EXHAUSTED` or `UNAVAILABLE`) has no message and is counted as such.
"""

import asyncio
import dataclasses
import itertools
import json
import random
import struct
import sys
import time
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import uvloop

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_MAX_CONCURRENT_STREAMS = 3
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_WIDE_OPEN = (1 << 31) - 1
_DEFAULT_WINDOW = 65_535
_SHORTEST_TICK_S = 0.0001
_TICKS_FOR_EACH = 5


@dataclass(frozen=True)
class Plan:
    """What to send."""

    address: str
    path: str
    bodies: str
    """A file of messages, each after its length in 4 bytes."""
    expect: str = ""
    """What the message of a right answer begins with, in hexadecimal; empty: any message, or none."""
    metadata: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/grpc"
    connections: int = 8
    depth: int = 16
    """Calls at once on a connection, where there is no `rate`."""
    calls: int = 0
    """How many; 0: as many as go into `seconds`."""
    seconds: float = 10.0
    rate: float = 0.0
    """Calls a second, sent whether or not others were answered; 0: each as soon as another was answered."""
    order: str = "in turn"
    """How the next message is chosen: `in turn`, or `zipf`."""


@dataclass
class Result:
    """What came back. Times in microseconds; of those at a rate, from when a call was due."""

    right: int = 0
    wrong: int = 0
    refused: int = 0
    seconds: float = 0.0
    percentiles: dict[str, float] = field(default_factory=dict)
    """Of the right answers."""


class _Load:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.bodies = list(_read_bodies(Path(plan.bodies)))
        self.expect = bytes.fromhex(plan.expect)
        self.headers = _headers(plan)
        self.result = Result()
        self.latencies = array("d")
        self.done = asyncio.get_running_loop().create_future()
        self.left = plan.calls or sys.maxsize
        self.ends_at = float("inf")
        self._next = _order(plan.order, len(self.bodies))

    def message(self) -> bytes:
        return self.bodies[next(self._next)]

    @property
    def goes_on(self) -> bool:
        return self.left > 0 and time.perf_counter() < self.ends_at

    async def run(self) -> Result:
        host, _, port = self.plan.address.rpartition(":")
        loop = asyncio.get_running_loop()
        connections = []
        for _ in range(self.plan.connections):
            _, connection = await loop.create_connection(lambda: _Connection(self), host, int(port))
            connections.append(connection)
        started_at = time.perf_counter()
        self.ends_at = started_at + self.plan.seconds
        if self.plan.rate:
            await self._send_at_a_rate(connections, started_at)
        else:
            for connection in connections:
                connection.fill(self.plan.depth)
        while any(connection.waiting for connection in connections):
            await asyncio.sleep(0.005)
            if self.done.done():
                self.done.result()
        self.result.seconds = time.perf_counter() - started_at
        self.result.percentiles = _percentiles(self.latencies)
        return self.result

    async def _send_at_a_rate(self, connections: list["_Connection"], started_at: float) -> None:
        turns = itertools.cycle(connections)
        # Not more often than it takes: turning all the time would take a core from the server.
        tick_s = max(_SHORTEST_TICK_S, 1 / self.plan.rate / _TICKS_FOR_EACH)
        sent = 0
        while self.goes_on:
            now = time.perf_counter()
            due = min(int((now - started_at) * self.plan.rate) + 1, sent + self.left)
            for number in range(sent, due):
                next(turns).send(started_at + number / self.plan.rate)
            for connection in connections:
                connection.flush()
            sent = due
            # The loop's own timers are too coarse.
            time.sleep(tick_s)  # noqa: ASYNC251
            await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    def __init__(self, load: _Load) -> None:
        self._load = load
        self._out: list[bytes] = []
        self._rest = b""
        self._stream = -1
        self._sent_at: dict[int, float] = {}
        self._is_right: set[int] = set()
        self._has_message: set[int] = set()
        self._window = _DEFAULT_WINDOW
        self._max_calls = _WIDE_OPEN
        self._held_back: deque[tuple[float, bytes]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._sent_at) + len(self._held_back)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        settings = struct.pack(">HIHI", 1, 0, 4, _WIDE_OPEN)
        self._out += [_PREFACE, _frame(_SETTINGS, 0, 0, settings)]
        self._out.append(_frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _WIDE_OPEN - _DEFAULT_WINDOW)))
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._load.done.done() and self.waiting:
            self._load.done.set_exception(error or ConnectionError("the server has closed the connection"))

    def fill(self, depth: int) -> None:
        """Keep so many calls going."""
        for _ in range(depth):
            if self._load.goes_on:
                self.send(time.perf_counter())
        self.flush()

    def send(self, at: float) -> None:
        """Begin a call."""
        self._load.left -= 1
        message = self._load.message()
        if self._held_back or not self._may_send(message):
            self._held_back.append((at, message))
        else:
            self._put(at, message)

    def _may_send(self, message: bytes) -> bool:
        return self._window >= len(message) + 5 and len(self._sent_at) < self._max_calls

    def _put(self, at: float, message: bytes) -> None:
        self._stream += 2
        self._window -= len(message) + 5
        self._sent_at[self._stream] = at
        self._out += (
            _frame(_HEADERS, _END_HEADERS, self._stream, self._load.headers),
            _frame(_DATA, _END_STREAM, self._stream, b"\0" + len(message).to_bytes(4, "big") + message),
        )

    def flush(self) -> None:
        """Put everything on the wire."""
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        start, end, finished = 0, len(data), 0
        while end - start >= 9:
            length = data[start] << 16 | data[start + 1] << 8 | data[start + 2]
            stop = start + 9 + length
            if stop > end:
                break
            kind, flags = data[start + 3], data[start + 4]
            stream = int.from_bytes(data[start + 5 : start + 9], "big")
            if kind == _DATA and stream in self._sent_at and stream not in self._has_message:
                self._has_message.add(stream)
                if data.startswith(self._load.expect, start + 14):
                    self._is_right.add(stream)
            if (kind in (_DATA, _HEADERS) and flags & _END_STREAM) or kind == _RST_STREAM:
                finished += self._finish(stream)
            elif kind > _HEADERS:
                self._control(kind, flags, data[start + 9 : stop], stream)
            start = stop
        self._rest = data[start:]
        self._send_what_was_held_back()
        if finished and not self._load.plan.rate:
            self.fill(finished)
        self.flush()

    def _send_what_was_held_back(self) -> None:
        while self._held_back and self._may_send(self._held_back[0][1]):
            self._put(*self._held_back.popleft())

    def _finish(self, stream: int) -> int:
        sent_at = self._sent_at.pop(stream, None)
        if sent_at is None:
            return 0
        result = self._load.result
        if stream in self._is_right or not (self._load.expect or stream in self._has_message):
            result.right += 1
            self._load.latencies.append(time.perf_counter() - sent_at)
        elif stream in self._has_message:
            result.wrong += 1
        else:
            result.refused += 1
        self._is_right.discard(stream)
        self._has_message.discard(stream)
        return 1

    def _control(self, kind: int, flags: int, payload: bytes, stream: int) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self._max_calls = dict(struct.iter_unpack(">HI", payload)).get(_MAX_CONCURRENT_STREAMS, self._max_calls)
            self._out.append(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._out.append(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
        elif kind == _GOAWAY and not self._load.done.done():
            self._load.done.set_exception(ConnectionError(f"the server goes away: {payload!r}"))


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _headers(plan: Plan) -> bytes:
    """The headers of every call, in HPACK without a dynamic table (RFC 7541, 6.2.2 and appendix A)."""
    named = {"te": "trailers", **plan.metadata}
    return b"".join(
        (
            b"\x83\x86",  # :method POST, :scheme http
            b"\x04" + _text(plan.path),
            b"\x01" + _text(plan.address),
            b"\x0f\x10" + _text(plan.content_type),
            *(b"\x00" + _text(name) + _text(value) for name, value in named.items()),
        )
    )


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) < 127:
        return bytes((len(data),)) + data
    rest, length = len(data) - 127, bytearray(b"\x7f")
    while rest >= 128:
        length.append(rest % 128 + 128)
        rest //= 128
    length.append(rest)
    return bytes(length) + data


def _order(order: str, count: int) -> Iterator[int]:
    if order == "in turn":
        return itertools.cycle(range(count))
    # Zipf's law with exponent 1, by the inverse of its distribution function; the same in each run.
    rng = random.Random(1)
    drawn = array("L", (min(int((count + 1) ** rng.random()) - 1, count - 1) for _ in range(200_000)))
    return itertools.cycle(drawn)


def _percentiles(latencies: "array[float]") -> dict[str, float]:
    if not latencies:
        return {}
    ordered = sorted(latencies)
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    return {name: ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1e6 for name, share in at.items()}


def _read_bodies(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    start = 0
    while start < len(data):
        length = int.from_bytes(data[start : start + 4], "big")
        yield data[start + 4 : start + 4 + length]
        start += 4 + length


async def _main() -> None:
    plan = Plan(**json.load(sys.stdin))
    print(json.dumps(dataclasses.asdict(await _Load(plan).run())))


if __name__ == "__main__":
    uvloop.run(_main())
