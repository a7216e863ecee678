"""Logging, for people and for machines. Every line is written here, whoever logs it.

What comes from the network may be in any text: a line holds no control character that is not ours. What the transport
logs is never shown with its arguments, which may be metadata, and so tokens, nor with anything that could be one.
Errors and warnings are bounded in rate: whoever can cause one could cause as many as there are calls.
"""

import io
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Any

import structlog

from gatekey_server.runtime.config import Settings

MAX_TEXT = 10_000
"""Characters of one text in a log line."""

MAX_LINES = 10
"""Errors and warnings of one kind in a period; others are counted."""

MAX_TRANSPORT_LINES = 5
"""The same of lines that the transport logs, of any level."""

PERIOD_S = 10.0

_MAX_KINDS = 100
_TRANSPORT = ("grpc", "asyncio")
_CORE = "grpc.core"
_CORE_LINE = re.compile(r"([IWEF])\d{4} [\d:.]+ +\d+ ([^\] ]+)\] (.*)", re.DOTALL)
_MAX_CORE_LINE = 500
_STDERR = 2
# As long as the random part of a secret, nearly: a peer may have its own token in a text that the transport logs.
_LIKE_A_SECRET = re.compile(r"[0-9A-Za-z]{20,}")

Event = MutableMapping[str, Any]


def configure(settings: Settings) -> None:
    """Log to standard error, ours and the libraries': for people on a terminal, else one JSON object a line."""
    _take_what_libraries_write()
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering: list[structlog.typing.Processor] = [
        # The default would print the local variables of every frame, and with them keys and tokens.
        structlog.processors.format_exc_info,
        escape,
        structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer(),
    ]
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    structlog.configure(
        processors=[*shared, limited(Rate(MAX_LINES)), *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(TransportFilter())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_suppressed, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)


class _Unfailing(io.RawIOBase):
    """A descriptor that loses what it cannot write: a full disk, or a reader that has gone, must not stop the service.

    Nothing is kept to be tried again: Python does so with buffers when it ends, and then ends with an error.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        with self._lock, suppress(OSError):
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        return len(data)


def _take_what_libraries_write() -> None:
    """Log what libraries write to the descriptor of standard error, as grpcio's core does; write there ourselves."""
    reading, writing = os.pipe()
    ours = os.dup(_STDERR)
    os.dup2(writing, _STDERR)
    os.close(writing)
    sys.stderr = io.TextIOWrapper(
        _Unfailing(ours),
        encoding="utf-8",
        errors="backslashreplace",
        write_through=True,
    )
    threading.Thread(target=_relay, args=(reading,), name="log-relay", daemon=True).start()


def _relay(reading: int) -> None:
    logger = logging.getLogger(_CORE)
    with os.fdopen(reading, "rb") as pipe:
        is_rest = False
        while line := pipe.readline(_MAX_CORE_LINE):
            if not is_rest:
                whole = line.decode(errors="replace").rstrip("\n")
                found = _CORE_LINE.match(whole)
                severity, place, text = found.groups() if found else ("E", "", whole)
                level = logging.ERROR if severity in "EF" else logging.WARNING
                logger.log(level, text, extra={"place": place})
            is_rest = not line.endswith(b"\n")


def escape(_: object, __: str, event: Event) -> Event:
    """Leave no character in a line that could end it, forge another one, or command a terminal."""
    return {
        _plain(str(key)): _indented(value) if key == "exception" else _escaped(value) for key, value in event.items()
    }


def _indented(traceback: Any) -> str:
    """A text of several lines, none of which can be taken for the beginning of another."""
    return "\n".join(f"  {_plain(line)}" for line in str(traceback)[-MAX_TEXT:].split("\n"))


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return _plain(value)
    if isinstance(value, dict):
        return {_plain(str(key)): _escaped(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_escaped(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float) else _plain(str(value))


def _plain(text: str) -> str:
    cut = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
    return cut if cut.isprintable() else "".join(map(_visible, cut))


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()


class Rate:
    """Bounds the lines of each kind in a period, and counts what it leaves out."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._kinds: dict[str, list[float]] = {}
        """When the period of each kind began, how many lines it had, and how many were left out before it."""

    def admit(self, kind: str, others: str) -> int | None:
        """How many lines of a kind were left out before this one; None where this one is left out.

        `others` is the kind of all that are too many to be told apart.
        """
        kind = kind[:MAX_TEXT]
        if len(self._kinds) >= _MAX_KINDS and kind not in self._kinds:
            kind = others
        now = self._clock()
        period = self._kinds.setdefault(kind, [now, 0, 0])
        if now - period[0] >= PERIOD_S:
            period[:] = [now, 0, max(0, period[1] - self._most)]
        period[1] += 1
        if period[1] > self._most:
            return None
        left_out, period[2] = int(period[2]), 0
        return left_out


def limited(rate: Rate) -> "structlog.typing.Processor":
    """Bound the rate of our own errors and warnings."""

    def limit(_: object, method: str, event: Event) -> Event:
        if logging.getLevelNamesMapping().get(method.upper(), logging.ERROR) < logging.WARNING:
            return event
        name = str(event.get("event"))
        left_out = rate.admit(f"{name} {event.get('reason', '')} {event.get('method', '')}", name)
        if left_out is None:
            raise structlog.DropEvent
        if left_out:
            event["suppressed"] = left_out
        return event

    return limit


class TransportFilter(logging.Filter):
    """What the transport's libraries log: without arguments, tracebacks and secrets, and only so often."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._rate = Rate(MAX_TRANSPORT_LINES, clock)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a record, which is made harmless."""
        if record.name.partition(".")[0] not in _TRANSPORT:
            return True
        left_out = self._rate.admit(f"{record.name} {getattr(record, 'place', record.msg)}", record.name)
        if left_out is None:
            return False
        error = record.exc_info[0] if record.exc_info else None
        text = _LIKE_A_SECRET.sub("…", str(record.msg))
        record.msg = text if error is None else f"{text} ({error.__name__})"
        record.args = record.exc_info = record.exc_text = record.stack_info = None
        record.suppressed = left_out
        return True


def _suppressed(_: object, __: str, event: Event) -> Event:
    """Tell how many lines of its kind were left out before this one."""
    left_out = getattr(event.get("_record"), "suppressed", 0)
    if left_out:
        event["suppressed"] = left_out
    return event
