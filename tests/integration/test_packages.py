"""The two distributions: who installs `gatekey` gets no server, and the server brings its commands."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from gatekey.core.secrets import new_secret

from tests.support.databases import Databases
from tests.support.programs import run
from tests.support.server import PEPPERS, ROOT, ServerProcess

PROJECTS = {"gatekey": ROOT / "clients" / "python", "gatekey-server": ROOT / "server"}
CONSTRAINTS = ("-c", ROOT / "constraints.txt")


def project(name: str) -> dict[str, object]:
    """What a distribution says of itself."""
    found: dict[str, object] = tomllib.loads((PROJECTS[name] / "pyproject.toml").read_text())["project"]
    return found


def test_both_have_one_version() -> None:
    version = project("gatekey")["version"]
    assert project("gatekey-server")["version"] == version
    assert f"gatekey[cli]=={version}" in project("gatekey-server")["dependencies"]  # type: ignore[operator]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels of both."""
    directory = tmp_path_factory.mktemp("wheels")
    command: list[str | Path] = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", directory]
    subprocess.run([*command, *PROJECTS.values()], check=True, timeout=600)
    return directory


async def install(wheels: Path, environment: Path, *requirements: str) -> Path:
    """An environment with nothing but these and what they need; returns the directory of its programs."""
    await run(sys.executable, "-m", "venv", environment)
    programs = environment / "bin"
    await run(programs / "pip", "install", "--quiet", "--find-links", wheels, *CONSTRAINTS, *requirements)
    return programs


@pytest.mark.slow
async def test_the_client_alone(wheels: Path, tmp_path: Path) -> None:
    programs = await install(wheels, tmp_path / "client", "gatekey")
    program = """
import importlib.util
import gatekey, gatekey.core.decisions
assert importlib.util.find_spec("gatekey_server") is None
assert importlib.util.find_spec("typer") is None
with gatekey.Client("127.0.0.1:1", token="gk_x", cache=True) as client:
    try:
        client.check("hey_x", "links", "read", timeout=0.2)
    except gatekey.ApiError as error:
        print("nobody is there")
"""
    assert await run(programs / "python", "-c", program, cwd=tmp_path) == "nobody is there\n"
    with pytest.raises(AssertionError, match=r"typer is missing: pip install 'gatekey\[cli\]'"):
        await run(programs / "gatekey", "--version", cwd=tmp_path)


@pytest.mark.slow
async def test_the_command_line_without_a_server(wheels: Path, tmp_path: Path) -> None:
    programs = await install(wheels, tmp_path / "cli", "gatekey[cli]")
    assert await run(programs / "gatekey", "--version", cwd=tmp_path) == f"gatekey {project('gatekey')['version']}\n"
    shown = await run(programs / "gatekey", "--help", cwd=tmp_path)
    assert "machine-users" in shown
    assert not re.search(r"│ (serve|migrate|peppers) ", shown)
    for command in (["serve", "--workers", "2"], ["migrate"], ["peppers", "generate"]):
        with pytest.raises(AssertionError, match="the server is not installed: pip install 'gatekey-server"):
            await run(programs / "gatekey", *command, cwd=tmp_path)


@pytest.mark.slow
async def test_the_server_brings_its_commands(wheels: Path, tmp_path: Path, databases: Databases) -> None:
    programs = await install(wheels, tmp_path / "server", "gatekey-server")
    assert (await run(programs / "gatekey", "peppers", "generate", cwd=tmp_path)).startswith("1:")
    variables = {"GATEKEY_DATABASE_URL": await databases.create(), "GATEKEY_PEPPERS": PEPPERS}
    assert "The schema is at version" in await run(programs / "gatekey", "migrate", cwd=tmp_path, **variables)
    token = new_secret("gk_")

    class Installed(ServerProcess):
        command = (str(programs / "gatekey"),)

    server = await Installed.start(variables | {"GATEKEY_ROOT_TOKEN": token}, cwd=tmp_path)
    listed = await run(
        *(programs / "gatekey", "products", "list", "--json"),
        cwd=tmp_path,
        GATEKEY_ADDRESS=server.address,
        GATEKEY_TOKEN=token,
    )
    assert [product["name"] for product in json.loads(listed)["products"]] == ["products/gatekey"]
    assert await server.stop() == 0
