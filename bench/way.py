"""The way of a call through the server: how many files and functions of Gatekey it goes through.

`python -m bench.way` traces a check from memory, one that loads, and a revocation, each several times. What all times
have in common is printed; the rest is background work. `--show` prints the names.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import ClassVar

import gatekey
import gatekey_server
from gatekey.core.secrets import new_secret
from gatekey.v1 import api_key_service_pb2 as pb
from gatekey_server.store.embedded import EmbeddedPostgres

from tests.support.databases import Databases
from tests.support.server import PEPPERS, Client, ServerProcess, read_example

_TIMES = 7
_PACKAGES = tuple(f"{package.__path__[0]}/" for package in (gatekey, gatekey_server))
_STUBS = f"{_PACKAGES[0]}v1/"
_QUIET_S = 0.1
_OUT = "WAY_TRACE_FILE"

Call = Callable[[], Awaitable[object]]
Names = frozenset[tuple[str, str]]
"""File and function."""


class _Traced(ServerProcess):
    command: ClassVar[tuple[str, ...]] = (sys.executable, "-m", "bench.way")


def main() -> None:
    """Trace, or be the server that is traced."""
    if _OUT in os.environ:
        _serve(Path(os.environ.pop(_OUT)))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--show", action="store_true", help="print each file and function")
    asyncio.run(_measure(show=parser.parse_args().show))


def _serve(out: Path) -> None:
    """Serve, and note each function that the main thread enters between SIGUSR1 and SIGUSR2."""
    seen = set[tuple[str, str]]()

    def note(frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(_PACKAGES) and not file.startswith(_STUBS):
            seen.add((file, frame.f_code.co_qualname))

    def begin(*_: object) -> None:
        seen.clear()
        sys.setprofile(note)

    def end(*_: object) -> None:
        sys.setprofile(None)
        new = out.with_suffix(".new")
        new.write_text(json.dumps(sorted(seen)))
        new.rename(out)

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)
    from gatekey_command import main as command  # noqa: PLC0415 - it is the server alone that needs it

    command()


async def _measure(*, show: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="gatekey-way-") as text:
        directory = Path(text)
        directory.chmod(0o711)
        with EmbeddedPostgres(directory) as postgres:
            databases = Databases(postgres)
            await databases.prepare()
            out = directory / "trace.json"
            token = new_secret("gk_")
            variables = {"GATEKEY_DATABASE_URL": await databases.create(), "GATEKEY_PEPPERS": PEPPERS}
            server = await _Traced.start(variables | {"GATEKEY_ROOT_TOKEN": token, _OUT: str(out)})
            root = Client(server.address, token)
            try:
                for name, calls in (await _calls(root)).items():
                    _print(name, await _common(server, out, calls), show=show)
            finally:
                await root.close()
                await server.stop()


async def _calls(root: Client) -> dict[str, Sequence[Call]]:
    """What is traced."""
    await root.apply(read_example("heyoo"))
    tenant = await root.create_tenant("heyoo", "acme")
    owner = await root.add_member(tenant, "ann", "owner")
    keys = [await root.create_key(tenant, owner, mode="ALL") for _ in range(2 * _TIMES + 2)]
    warm, *others = keys
    for _ in range(3):
        await root.verdict(warm.secret, "campaigns", "read")
    return {
        "a check from memory": [partial(root.verdict, warm.secret, "campaigns", "read")] * _TIMES,
        "a check that loads": [partial(root.verdict, key.secret, "campaigns", "read") for key in others[:_TIMES]],
        "a revocation": [
            partial(root.keys.RevokeApiKey, pb.RevokeApiKeyRequest(name=key.api_key.name)) for key in others[_TIMES:]
        ],
    }


async def _common(server: ServerProcess, out: Path, calls: Sequence[Call]) -> Names:
    common: Names | None = None
    for call in calls:
        out.unlink(missing_ok=True)
        server.process.send_signal(signal.SIGUSR1)
        await asyncio.sleep(_QUIET_S)
        await call()
        server.process.send_signal(signal.SIGUSR2)
        while not out.exists():  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(_QUIET_S)
        seen: Names = frozenset((file, name) for file, name in json.loads(out.read_text()))
        common = seen if common is None else common & seen
    return common or frozenset()


def _print(name: str, common: Names, *, show: bool) -> None:
    print(f"{name}: {len({file for file, _ in common})} files, {len(common)} functions")
    if show:
        for file, function in sorted(common):
            print(f"    {file.partition('/gatekey')[2]} {function}")


if __name__ == "__main__":
    main()
