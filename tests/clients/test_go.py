"""The Go client: its own tests, its quickstart, the decision table, and TLS."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.clients.conftest import Mutual, Pair, failures_while_one_is_replaced
from tests.support import conformance
from tests.support.fixtures import Fixtures
from tests.support.programs import blocks, run
from tests.support.server import ROOT, Client, ServerProcess

CLIENT = ROOT / "clients" / "go"
README = CLIENT / "README.md"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("go") is None, reason="go is not installed: the Go client is not tested"),
]


@pytest.fixture(scope="session")
async def conformance_program(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    """The program that asks the decision table's questions."""
    program = tmp_path_factory.mktemp("go") / "conformance"
    await run("go", "build", "-o", program, "./internal/conformance", cwd=CLIENT)
    return [program]


@pytest.mark.drill
async def test_the_client_s_own_tests() -> None:
    await run("go", "vet", "./...", cwd=CLIENT)
    await run("go", "test", "./...", cwd=CLIENT)


async def test_the_code_is_formatted() -> None:
    assert await run("gofmt", "-l", CLIENT) == ""


@pytest.mark.slow
async def test_the_quickstart_of_a_module_that_has_installed_the_client(
    root: Client, server: ServerProcess, tmp_path: Path
) -> None:
    assert root.token is not None
    install, _ = blocks(README, "sh")
    (printed,) = blocks(README, "text")
    await run("go", "mod", "init", "test.example/caller", cwd=tmp_path)
    shutil.copy(CLIENT / "quickstart" / "main.go", tmp_path)
    await run("sh", "-euc", install.replace("/path/to/gatekey", str(ROOT)), cwd=tmp_path)
    await run("go", "build", "-o", "quickstart", ".", cwd=tmp_path)
    for _ in range(2):
        assert await run(tmp_path / "quickstart", server.address, GATEKEY_TOKEN=root.token) == printed


async def test_the_decision_table(
    fixtures: Fixtures, server: ServerProcess, conformance_program: Sequence[Path]
) -> None:
    assert await conformance.differences(fixtures, server.address, conformance_program) == {}


async def test_paths_of_ids(conformance_program: Sequence[Path]) -> None:
    assert await conformance.wrong_paths(conformance_program) == {}


@pytest.mark.drill
async def test_no_call_fails_while_one_of_two_servers_is_replaced(
    pair: Pair, conformance_program: Sequence[Path], tmp_path: Path
) -> None:
    assert await failures_while_one_is_replaced(pair, conformance_program, tmp_path) == []


async def test_mutual_tls(root: Client, mutual: Mutual, conformance_program: Sequence[Path]) -> None:
    answers = await conformance.callers_over_tls(conformance_program, mutual.address, mutual.files, root)
    assert answers == ["KEY_UNKNOWN"] * 4
