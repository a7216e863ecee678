"""`gatekey serve` without a guard, and with a signal that blocks it: `python -m tests.chaos.server GUARD serve`."""

import signal
import sys
import time
from types import FrameType

from gatekey.core.lease import LEASE_S
from gatekey_command import main as gatekey

from tests.chaos import disabled_guards

BLOCK_SIGNAL = signal.SIGUSR1
BLOCK_S = LEASE_S + 1.5


def block(_number: int, _frame: FrameType | None) -> None:
    """Do nothing but this for longer than a lease."""
    # In the thread of the event loop, which waits for it like for any callback.
    time.sleep(BLOCK_S)


def main() -> None:
    """Run the command line."""
    disabled_guard = sys.argv.pop(1)
    if disabled_guard in disabled_guards.IN_SERVERS:
        disabled_guards.IN_SERVERS[disabled_guard]()
    signal.signal(BLOCK_SIGNAL, block)
    gatekey()


if __name__ == "__main__":
    main()
