"""One attack, as a process of its own: `python -m tests.attack.attacker NAME`.

It reads what the attack needs as a line of JSON, says that it is ready, and reads for how many seconds to attack.
Then it writes what it saw.
"""

import asyncio
import json
import logging
import os
import sys

from tests.attack.attacks import ATTACKS
from tests.attack.ground import Scene


def main() -> None:
    """Attack."""
    # It stands for somebody else's machine, and takes no core from the server, its database and the victim. Not with
    # SCHED_IDLE: then it is too slow for some attacks.
    os.nice(19)
    # Of each write to a connection that the server has ended.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    attack, scene = ATTACKS[sys.argv[1]], Scene(**json.loads(sys.stdin.readline()))
    print("ready", flush=True)
    print(json.dumps(asyncio.run(attack.run(scene, float(sys.stdin.readline())))), flush=True)


if __name__ == "__main__":
    main()
