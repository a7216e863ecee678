"""Sends random messages, bytes and specs to a server of its own. See `docs/development.md`.

Exits with 1 if something was found, and with 2 if the run proves nothing.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import traceback
from pathlib import Path

from gatekey.core.secrets import new_secret
from gatekey_server.store.embedded import EmbeddedPostgres

from tests.fuzz.campaign import Campaign, Result, saved, variables
from tests.support.databases import Databases
from tests.support.server import ServerProcess

_FOUND, _UNUSABLE = 1, 2
_SHARES = {"messages": 0.6, "sockets": 0.25, "specs": 0.15}


def main() -> int:
    """Send, judge and tell."""
    arguments = _arguments()
    print(f"seed {arguments.seed}", flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix="gatekey-fuzz-") as directory:
            Path(directory).chmod(0o711)
            with EmbeddedPostgres(Path(directory), settings={"fsync": "off"}) as postgres:
                result = asyncio.run(_run(arguments, postgres))
    except Exception:  # noqa: BLE001 - must not look like a finding
        traceback.print_exc()
        return _UNUSABLE
    for finding in result.findings:
        print(f"\n{finding}")
    print(f"\n{result.summary()}")
    if result.findings and arguments.save is not None:
        print(f"saved in {arguments.save}")
    return _FOUND if result.findings else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for how long (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of all that is random")
    parser.add_argument("--only", choices=list(_SHARES), help="only one kind")
    parser.add_argument("--save", type=Path, metavar="DIRECTORY", help="where findings are written to")
    return parser.parse_args()


async def _run(arguments: argparse.Namespace, postgres: EmbeddedPostgres) -> Result:
    databases, token = Databases(postgres), new_secret("gk_")
    await databases.prepare()
    server = await ServerProcess.start(variables(await databases.create(), token))
    try:
        async with Campaign.against(server, token, arguments.seed) as campaign:
            with saved(campaign.result, arguments.save):
                for what, share in _SHARES.items():
                    if arguments.only in {None, what}:
                        await getattr(campaign, what)(arguments.seconds * (1 if arguments.only else share))
                        await campaign.look()
        return campaign.result
    finally:
        await server.stop()


if __name__ == "__main__":
    sys.exit(main())
