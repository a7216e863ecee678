"""The Go client: its own tests, its quickstart, the decision table, and TLS."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support import conformance
from tests.support.programs import run
from tests.support.server import ROOT, Client, ServerProcess
from tests.support.world import World

CLIENT = ROOT / "clients" / "go"

pytestmark = pytest.mark.skipif(shutil.which("go") is None, reason="go is not installed: the Go client is not tested")


@pytest.fixture(scope="session")
async def programs(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    """The directory of the client's programs."""
    directory = tmp_path_factory.mktemp("go")
    await run("go", "build", "-o", directory, "./...", cwd=CLIENT)
    yield directory


async def test_the_client_s_own_tests() -> None:
    await run("go", "vet", "./...", cwd=CLIENT)
    await run("go", "test", "./...", cwd=CLIENT)


async def test_the_code_is_formatted() -> None:
    assert await run("gofmt", "-l", CLIENT) == ""


async def test_the_quickstart(root: Client, server: ServerProcess, programs: Path) -> None:
    assert root.token is not None
    for _ in range(2):
        printed = await run(programs / "quickstart", server.address, GATEKEY_TOKEN=root.token)
        assert printed.splitlines() == [
            "true REASON_ALLOWED member",
            "missing: write on tags",
            "true ",
            "false RESOURCE_INVALID",
        ]


async def test_the_decision_table(world: World, server: ServerProcess, programs: Path) -> None:
    assert await conformance.differences(world, server.address, [programs / "conformance"]) == {}
