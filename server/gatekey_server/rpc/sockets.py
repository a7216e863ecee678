"""Pausing the sockets of grpcio, which does not expose them."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

_FDS = "/dev/fd"
# More than a socket's buffer holds, so that the socket never becomes readable.
_NEVER = 1 << 30


def pause_reading(port: int) -> None:
    """Leave all data for a port of this process in the kernel, on new and old connections. Raises `OSError`."""
    _wake_at(port, _NEVER)


def resume_reading(port: int) -> None:
    """Read again. Raises `OSError`."""
    _wake_at(port, 1)


def _wake_at(port: int, size: int) -> None:
    for each in _sockets_of(port):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)


def _sockets_of(port: int) -> Iterator[socket.socket]:
    for name in Path(_FDS).iterdir():
        try:
            number = int(name.name)
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as each:
                if each.family in (socket.AF_INET, socket.AF_INET6) and each.getsockname()[1] == port:
                    yield each
        except OSError:
            # The descriptor was closed meanwhile.
            continue
