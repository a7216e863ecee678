"""Attacks a server over each transport in every known way, while somebody goes on asking. See `docs/development.md`.

Exits with 1 if a bound did not hold.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gatekey_server.store.embedded import EmbeddedPostgres

from tests.attack.attacks import ATTACKS, KINDS
from tests.attack.field import MAX_P99_MS, TRANSPORTS, Outcome, open_field
from tests.attack.victim import INTERVAL_S
from tests.support.databases import Databases

_TRIES = 2
_WIDTHS = ("26", "12", "5", ">6", ">7", ">7", ">7", ">5", ">5", ">7", "")
_HEAD = ("attack", "kind", "over", "checks", "p50", "p99", "max ms", "lost", "+MB", "log KB", "")


def main() -> int:
    """Attack and tell."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="gatekey-attack-") as text:
        directory = Path(text)
        directory.chmod(0o711)
        settings = {"fsync": "off", "synchronous_commit": "off", "max_connections": "200"}
        with EmbeddedPostgres(directory, settings=settings) as postgres:
            faults = asyncio.run(_run(arguments, postgres, directory))
    print(
        f"{faults} bounds did not hold." if faults else f"Every p99 was below {MAX_P99_MS:g} ms and nothing was lost."
    )
    return 1 if faults else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make attack", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="for how long, each attack (%(default)s)")
    parser.add_argument("--only", type=_names, default=list(ATTACKS), help=f"some of {', '.join(ATTACKS)}")
    parser.add_argument("--over", choices=TRANSPORTS, action="append", help="plain or TLS; else both")
    parser.add_argument("--scale", type=float, default=1, help="of how many rows there are to be (%(default)s)")
    parser.add_argument("--verbose", action="store_true", help="print what attackers saw")
    return parser.parse_args()


def _names(text: str) -> Sequence[str]:
    names = text.split(",")
    if not set(names) <= ATTACKS.keys():
        raise argparse.ArgumentTypeError(f"choose from {', '.join(ATTACKS)}")
    return names


async def _run(arguments: argparse.Namespace, postgres: EmbeddedPostgres, directory: Path) -> int:
    """Attack; answers how often it was wrong."""
    databases = Databases(postgres)
    await databases.prepare()
    _print(_HEAD)
    faults = 0
    # Half of the checks are of keys that were never asked for.
    cold_keys = int(len(arguments.only) * _TRIES * arguments.seconds / INTERVAL_S / 2) + 1
    for transport in arguments.over or TRANSPORTS:
        certificates = directory / transport
        certificates.mkdir()
        async with open_field(
            transport, await databases.create(), certificates, cold_keys=cold_keys, scale=arguments.scale
        ) as field:
            for name in arguments.only:
                for attempt in range(_TRIES):
                    outcome = await field.suffer(ATTACKS[name], arguments.seconds)
                    _print(_row(outcome))
                    if arguments.verbose:
                        print(f"    {dict(outcome.seen)}", flush=True)
                    if not outcome.faults:
                        break
                    print("    once more: the machine may have been busy" if attempt == 0 else "    again", flush=True)
                else:
                    faults += 1
    return faults


def _row(outcome: Outcome) -> tuple[str, ...]:
    attack, found = outcome.attack, outcome.found
    times = [f"{outcome.percentile(part):.1f}" for part in (0.5, 0.99, 1)]
    return (
        *(attack.name, f"{attack.kind} {KINDS[attack.kind]}", outcome.transport, str(len(found.ms)), *times),
        *(str(len(found.lost)), f"{outcome.growth_mb:.0f}", f"{outcome.log_kb:.1f}", ", ".join(outcome.faults) or "ok"),
    )


def _print(row: tuple[str, ...]) -> None:
    print(
        " ".join(f"{cell:{width}}" for cell, width in zip(row, _WIDTHS, strict=True)),
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
