"""The TypeScript client: its own tests, its quickstart, the decision table, and TLS."""

import shutil
from pathlib import Path

import pytest

from tests.support import conformance
from tests.support.programs import run
from tests.support.server import ROOT, Client, ServerProcess
from tests.support.world import World

CLIENT = ROOT / "clients" / "typescript"

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or shutil.which("npm") is None,
    reason="node or npm is not installed: the TypeScript client is not tested",
)


@pytest.fixture(scope="session")
async def programs() -> Path:
    """The directory of the client's programs."""
    if not _is_installed():
        await run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", cwd=CLIENT)
    await run("npm", "run", "build:test", cwd=CLIENT)
    return CLIENT / "build"


def _is_installed() -> bool:
    installed, wanted = CLIENT / "node_modules" / ".package-lock.json", CLIENT / "package-lock.json"
    return installed.exists() and installed.stat().st_mtime > wanted.stat().st_mtime


async def test_the_client_s_own_tests(programs: Path) -> None:
    await run("node", "--test", programs / "test" / "client.test.js", cwd=CLIENT)


async def test_the_quickstart(root: Client, server: ServerProcess, programs: Path) -> None:
    assert root.token is not None
    for _ in range(2):
        program = programs / "quickstart" / "quickstart.js"
        printed = await run("node", program, server.address, GATEKEY_TOKEN=root.token)
        assert printed.splitlines() == [
            "true ALLOWED member",
            "missing: write on tags",
            "true ",
            "false RESOURCE_INVALID",
        ]


async def test_the_decision_table(world: World, server: ServerProcess, programs: Path) -> None:
    program = ["node", programs / "conformance" / "conformance.js"]
    assert await conformance.differences(world, server.address, program) == {}
