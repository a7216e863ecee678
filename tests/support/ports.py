"""Ports that nobody uses."""

import os
import socket


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody uses."""
    for first in range(20000 + os.getpid() % 20000, 60000, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, one in enumerate(sockets):
                one.bind(("127.0.0.1", first + offset))
        except OSError:
            continue
        else:
            return first
        finally:
            for one in sockets:
                one.close()
    raise AssertionError("there are no free ports")
