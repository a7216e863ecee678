"""The TypeScript client: its own tests, its quickstart, the decision table, and TLS."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import Mutual, Pair, failures_while_one_is_replaced
from tests.support import conformance
from tests.support.fixtures import Fixtures
from tests.support.programs import blocks, run
from tests.support.server import ROOT, Client, ServerProcess

CLIENT = ROOT / "clients" / "typescript"
README = CLIENT / "README.md"

# What npm has fetched once it need not ask for again.
SPARING: dict[str, Any] = {"npm_config_prefer_offline": "true", "npm_config_audit": "false", "npm_config_fund": "false"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("node") is None or shutil.which("npm") is None,
        reason="node or npm is not installed: the TypeScript client is not tested",
    ),
]


@pytest.fixture(scope="session")
async def programs() -> Path:
    """The directory of the client's programs. The client itself is packed as its page says."""
    pack, *_ = blocks(README, "sh")
    if _is_installed():
        pack = pack.replace("npm ci\n", "")
    await run("sh", "-euc", pack.replace("/path/to/gatekey", str(ROOT)), **SPARING)
    await run("node_modules/.bin/tsc", "-p", "tsconfig.test.json", cwd=CLIENT)
    return CLIENT / "build"


def _is_installed() -> bool:
    installed, wanted = CLIENT / "node_modules" / ".package-lock.json", CLIENT / "package-lock.json"
    return installed.exists() and installed.stat().st_mtime >= wanted.stat().st_mtime


@pytest.fixture
def conformance_program(programs: Path) -> Sequence[str | Path]:
    """The program that asks the decision table's questions."""
    return ["node", programs / "conformance" / "conformance.js"]


@pytest.mark.slow
async def test_the_client_s_own_tests(programs: Path) -> None:
    await run("node", "--test", programs / "test" / "client.test.js", cwd=CLIENT)


@pytest.mark.slow
async def test_the_quickstart_of_a_package_that_has_installed_the_client(
    root: Client, server: ServerProcess, programs: Path, tmp_path: Path
) -> None:
    assert root.token is not None
    _, install, _ = blocks(README, "sh")
    (printed,) = blocks(README, "text")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(programs / "quickstart" / "quickstart.js", tmp_path)
    await run("sh", "-euc", install.replace("/path/to/gatekey", str(ROOT)), cwd=tmp_path, **SPARING)
    assert {path.name for path in (tmp_path / "node_modules" / "@gatekey" / "client").iterdir()} == {
        "LICENSE",
        "README.md",
        "dist",
        "package.json",
    }
    for _ in range(2):
        assert await run("node", "quickstart.js", server.address, cwd=tmp_path, GATEKEY_TOKEN=root.token) == printed


async def test_the_decision_table(
    fixtures: Fixtures, server: ServerProcess, conformance_program: Sequence[str | Path]
) -> None:
    assert await conformance.differences(fixtures, server.address, conformance_program) == {}


async def test_paths_of_ids(conformance_program: Sequence[str | Path]) -> None:
    assert await conformance.wrong_paths(conformance_program) == {}


@pytest.mark.drill
async def test_no_call_fails_while_one_of_two_servers_is_replaced(
    pair: Pair, conformance_program: Sequence[str | Path], tmp_path: Path
) -> None:
    assert await failures_while_one_is_replaced(pair, conformance_program, tmp_path) == []


async def test_mutual_tls(root: Client, mutual: Mutual, conformance_program: Sequence[str | Path]) -> None:
    answers = await conformance.callers_over_tls(conformance_program, mutual.address, mutual.files, root)
    assert answers == ["KEY_UNKNOWN"] * 4
