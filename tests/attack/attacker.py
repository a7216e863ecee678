"""One attack, as a process of its own: `python -m tests.attack.attacker NAME`.

It reads what the attack needs as a line of JSON, says that it is ready, and reads for how many seconds to attack.
Then it writes what it saw.
"""

import asyncio
import json
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

from tests.attack.attacks import ATTACKS
from tests.attack.ground import Scene


def main() -> None:
    """Attack."""
    _stand_aside()
    # Of each write to a connection that the server has ended.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    attack, scene = ATTACKS[sys.argv[1]], Scene(**json.loads(sys.stdin.readline()))
    print("ready", flush=True)
    print(json.dumps(asyncio.run(attack.run(scene, float(sys.stdin.readline())))), flush=True)


def _stand_aside() -> None:
    """Take no core from the server, its database and the victim: this stands for somebody else's machine.

    Not with SCHED_IDLE, with which it is too slow for some attacks.
    """
    os.nice(19)
    # Linux shares the cores out by sessions. Beside one that is as busy as the server's and this process's together,
    # PostgreSQL's processes, each a session of its own, were seen to wait for 100 ms each time, and for seconds.
    with suppress(OSError):
        os.setsid()
        Path("/proc/self/autogroup").write_text("10")


if __name__ == "__main__":
    main()
