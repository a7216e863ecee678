"""The standard streams, and text as files, terminals and other programs hand it over."""

import os
import select
import string
import sys
from pathlib import Path

from gatekey.cli.problems import Failure, OutputFailed

_STANDARD = (0, 1, 2)
_STDIN = Path("-")


def open_closed() -> None:
    """Give every standard stream that was closed a file, before a connection takes its number.

    Standard output gets one that cannot be written: a command whose output is lost has failed.
    """
    for number in _STANDARD:
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, which is this one.
            os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def require_output() -> None:
    """Raise `OutputFailed` where standard output is known not to take anything: closed, a broken pipe, a full device.

    A full file system shows only when it is written to.
    """
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):
        return  # Captured by a test, or by a program that has no descriptor for it.
    try:
        os.write(number, b"")
        poll = select.poll()
        poll.register(number, select.POLLOUT)
        is_broken = any(events & select.POLLERR for _, events in poll.poll(0))
    except OSError as error:
        raise OutputFailed(f"standard output cannot be written ({error.strerror}); nothing was done") from None
    if is_broken:
        raise OutputFailed("standard output is a pipe that nobody reads; nothing was done")


def discard_output() -> None:
    """Send standard output nowhere: what could not be written is still held, and would fail once more at the end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def stripped(text: str) -> str:
    """The text without what editors, terminals and web pages put around it: white space and byte order marks."""
    return text.strip("\ufeff\u200b\u2060" + string.whitespace + "\xa0")


def decode(data: bytes, source: str) -> str:
    """Decode UTF-8, without the byte order mark that some editors put first. Raises `Failure`."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Failure(f"{source} is UTF-16: save it as UTF-8", reason="ENCODING_INVALID")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Failure(f"{source} is not UTF-8 at byte {error.start + 1}", reason="ENCODING_INVALID") from None


def label(path: Path) -> str:
    """What people call a file that `read_file` reads."""
    return "standard input" if path == _STDIN else str(path)


def read_file(path: Path, max_bytes: int) -> bytes:
    """Read a file; `-` stands for standard input. Raises `Failure`."""
    try:
        if path == _STDIN:
            data = sys.stdin.buffer.read(max_bytes + 1)
        else:
            with path.open("rb") as file:
                data = file.read(max_bytes + 1)
    except OSError as error:
        raise Failure(f"{label(path)}: {error.strerror}", reason="FILE_UNREADABLE") from error
    if len(data) > max_bytes:
        raise Failure(f"{label(path)} has more than {max_bytes} bytes", reason="FILE_TOO_LARGE")
    return data
