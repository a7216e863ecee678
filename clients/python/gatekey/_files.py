"""Files that people name, which may be anything: a directory, a pipe that nobody writes to, a device without end."""

import os
import select
import time
from pathlib import Path

MAX_BYTES = 1 << 20
"""The longest file that a variable may name."""
WAIT_S = 5.0
"""How long to wait for what somebody writes into a pipe, such as `<(command)` of a shell."""


def read_bounded(path: Path, wait_s: float = WAIT_S) -> bytes:
    """Read a file of at most `MAX_BYTES`, or a pipe to its end. Raises `OSError` and `ValueError`."""
    give_up_at = time.monotonic() + wait_s
    # A pipe that nobody has opened for writing would not even be opened.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        readable, data = select.poll(), b""
        readable.register(number, select.POLLIN)
        while len(data) <= MAX_BYTES:
            if not readable.poll(max(0.0, give_up_at - time.monotonic()) * 1000):
                raise ValueError(f"is a pipe or a device whose end was not reached within {wait_s:g} s")
            try:
                more = os.read(number, MAX_BYTES + 1 - len(data))
            except BlockingIOError:
                continue
            if not more:
                return data
            data += more
    finally:
        os.close(number)
    raise ValueError(f"has more than {MAX_BYTES} bytes")
