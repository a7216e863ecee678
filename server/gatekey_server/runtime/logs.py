"""Logging, as text for people or JSON for machines. Every line is written here, also those of libraries.

Any text may contain bytes from the network, so control characters are escaped. Lines of the transport are logged
without their arguments, which may be metadata and so tokens, and with anything that looks like a token removed.
Errors and warnings are limited in rate: whoever can cause one could cause one per call.
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
"""The maximum length of one text in a log line."""

MAX_LINES = 10
"""How many errors and warnings of one kind are logged per period. Others are counted."""

MAX_TRANSPORT_LINES = 5
"""The same for lines of the transport, of any level."""

PERIOD_S = 10.0

_MAX_KINDS = 100
_TRANSPORT = ("grpc", "asyncio")
_CORE = "grpc.core"
_CORE_LINE = re.compile(r"([IWEF])\d{4} [\d:.]+ +\d+ ([^\] ]+)\] (.*)", re.DOTALL)
_MAX_CORE_LINE = 500
_STDERR = 2
# Nearly the length of a secret's random part: a peer's own token may appear in a text that the transport logs.
_LIKE_A_SECRET = re.compile(r"[0-9A-Za-z]{20,}")

Event = MutableMapping[str, Any]


def configure(settings: Settings) -> None:
    """Log to standard error, including libraries: as text on a terminal, else one JSON object a line."""
    _take_what_libraries_write()
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering: list[structlog.typing.Processor] = [
        # The default prints the local variables of every frame, and so keys and tokens.
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
    """A descriptor that drops what it cannot write: a full disk or a closed pipe must not stop the service.

    Nothing is buffered for a retry: Python flushes buffers at exit, and would then exit with an error.
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
    """Turn what libraries write to the descriptor of standard error into log lines, as grpcio's core does."""
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
    """Escape all characters that could end a line, forge another one, or control a terminal."""
    return {
        _plain(str(key)): _indented(value) if key == "exception" else _escaped(value) for key, value in event.items()
    }


def _indented(traceback: Any) -> str:
    """Return a text of several lines, indented so that none looks like the beginning of a log line."""
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
    """Limits the lines of each kind per period, and counts those that it drops."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._kinds: dict[str, list[float]] = {}
        """By kind: when its period began, how many lines it had, and how many were dropped before it."""

    def admit(self, kind: str, others: str) -> int | None:
        """Return how many lines of a kind were dropped before this one; None where this one is dropped.

        `others` is the kind that lines count as once there are too many kinds.
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
    """Return a processor that limits the rate of the server's own errors and warnings."""

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
    """Filters the transport's log records: no arguments, tracebacks or secrets, and a limited rate."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._rate = Rate(MAX_TRANSPORT_LINES, clock)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a record, which is sanitized in place."""
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
    """Return a note on how many lines of its kind were dropped before this one."""
    left_out = getattr(event.get("_record"), "suppressed", 0)
    if left_out:
        event["suppressed"] = left_out
    return event
