"""Measures Gatekey beside its peers: `make bench`, or `make bench ARGS="throughput cache"` for some of it."""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from bench.admin import admin
from bench.cache import cache
from bench.checks import latency, overload, throughput, workers
from bench.client_cache import client_cache
from bench.clients import clients
from bench.processes import ROOT
from bench.report import Report
from bench.revocations import revocations
from bench.scale import SIZES, scale

Section = Callable[[Report, Path], Awaitable[None]]

SECTIONS: Mapping[str, Section] = {
    "throughput": throughput,
    "latency": latency,
    "workers": workers,
    "overload": overload,
    "cache": cache,
    "client-cache": client_cache,
    "clients": clients,
    "revocations": revocations,
    "admin": admin,
    "scale": scale,
}


def main() -> int:
    """Return 1 where a goal is missed, once the sections have run and the report is written; otherwise 0."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="all, if none is named")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "bench", help="where the report goes (%(default)s)"
    )
    parser.add_argument("--max-keys", type=int, default=SIZES[-1], help="the most keys of `scale` (%(default)s)")
    arguments = parser.parse_args()
    report = Report()
    asyncio.run(_run(report, arguments.sections or list(SECTIONS), arguments.max_keys))
    print(f"written to {report.write(arguments.out, ' '.join(['make bench', *sys.argv[1:]]))}")
    return int(any(figure.is_met is False for figure in report.figures))


async def _run(report: Report, sections: list[str], max_keys: int) -> None:
    for name in sections:
        with tempfile.TemporaryDirectory(prefix="gatekey-bench-") as directory:
            if name == "scale":
                await scale(report, Path(directory), tuple(size for size in SIZES if size <= max_keys))
            else:
                await SECTIONS[name](report, Path(directory))


if __name__ == "__main__":
    sys.exit(main())
