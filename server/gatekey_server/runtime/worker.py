"""The entry point of one of several processes that serve on one port. Only the supervisor starts it."""

import ctypes
import os
import signal
import sys

from gatekey_server.runtime import app, config, logs, supervisor

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Serve until SIGTERM, or until the supervisor is gone."""
    ready_fd, parent = int(os.environ.pop(supervisor.READY_FD)), int(os.environ.pop(supervisor.PARENT))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return 1
    try:
        settings = config.load()
    except config.ConfigError as error:
        # The files that variables name may have changed since the supervisor read them, so this may fail.
        sys.stderr.write("".join(f"error: {problem}\n" for problem in error.problems))
        return 1
    logs.configure(settings)

    def announce() -> None:
        os.write(ready_fd, b"1")
        os.close(ready_fd)

    try:
        app.work(settings, announce)
    except app.StartError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
