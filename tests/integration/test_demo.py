"""The demo of a server with TLS, or with a database that it did not make: made where it can be, else said why not."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from gatekey.cli import local
from gatekey.core.secrets import new_secret
from gatekey_server.cli.commands import _host_for_clients
from gatekey_server.rpc.certificates import is_good_for

from tests.integration.test_service import run_async
from tests.support.certificates import LOCALHOST, Authority
from tests.support.databases import Databases
from tests.support.server import EXAMPLES, PEPPERS, ServerProcess, environment

AUTHORITY = Authority("servers")
NAMED = x509.DNSName("localhost")
ELSEWHERE = x509.DNSName("gatekey.example")
NO_DEMO = "warning: there is no demo: "


@asynccontextmanager
async def demo(cwd: Path, **variables: str) -> AsyncIterator[ServerProcess]:
    """A server with the demo of the examples, in a directory of its own."""
    process = await ServerProcess.start(variables, "--demo", str(EXAMPLES), cwd=cwd)
    try:
        yield process
    finally:
        code = await process.stop()
    assert code == 0
    assert "rpc.failed" not in "".join(process.output)


def tls(cwd: Path, *names: x509.GeneralName) -> dict[str, str]:
    """The variables of a server with a certificate for these names."""
    AUTHORITY.issue(*names).write(cwd)
    return {"GATEKEY_TLS_CERTIFICATE": "server.pem", "GATEKEY_TLS_KEY": "server.key"}


async def printed(process: ServerProcess, text: str) -> str:
    """The line that begins with a text, without the text, once it was printed."""
    async with asyncio.timeout(30):
        while True:
            for line in process.output:
                if line.startswith(text):
                    return line.removeprefix(text).strip()
            await asyncio.sleep(0.02)


async def commands(process: ServerProcess) -> list[str]:
    """The two commands of the demo: one that is allowed, one that is denied."""
    await printed(process, "The demo keys")
    lines = [line.strip() for line in process.output]
    return [lines[lines.index(f"# {verdict}") + 1] for verdict in ("allowed", "denied")]


async def paste(cwd: Path, line: str, **variables: str) -> int:
    """Run a line in a shell in another terminal; answers its exit code."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = await asyncio.to_thread(
        subprocess.run, ["sh", "-c", line], cwd=cwd, env=environment(PATH=path, **variables), check=False, timeout=30
    )
    return done.returncode


@pytest.mark.slow
@pytest.mark.parametrize(("name", "host"), [(LOCALHOST, "127.0.0.1"), (NAMED, "localhost")])
async def test_the_demo_speaks_tls(tmp_path: Path, name: x509.GeneralName, host: str) -> None:
    async with demo(tmp_path, **tls(tmp_path, name)) as process:
        allowed, denied = await commands(process)
        assert allowed.startswith("GATEKEY_CA=server.pem gatekey check bsy_")
        assert await paste(tmp_path, allowed) == 0
        assert await paste(tmp_path, denied) == 3
        config = local.read(tmp_path / local.DEFAULT_PATH)
        assert config is not None
        assert config.address == f"{host}:{process.address.rpartition(':')[2]}"
        assert "warning" not in "".join(process.output)


@pytest.mark.slow
async def test_no_demo_with_mutual_tls(tmp_path: Path) -> None:
    (tmp_path / "clients.pem").write_bytes(AUTHORITY.pem)
    AUTHORITY.issue(common_name="client").write(tmp_path, "client")
    async with demo(tmp_path, **tls(tmp_path, LOCALHOST), GATEKEY_TLS_CLIENT_CA="clients.pem") as process:
        why = await printed(process, NO_DEMO)
        assert why == "it has no certificate of its own, and GATEKEY_TLS_CLIENT_CA demands one of every client"
        assert (
            await paste(
                tmp_path,
                "gatekey products list",
                GATEKEY_CA="clients.pem",
                GATEKEY_CLIENT_CERTIFICATE="client.pem",
                GATEKEY_CLIENT_KEY="client.key",
            )
            == 0
        )
    assert "The demo keys" not in "".join(process.output)


@pytest.mark.slow
async def test_no_demo_with_a_certificate_for_another_host(tmp_path: Path) -> None:
    async with demo(tmp_path, **tls(tmp_path, ELSEWHERE)) as process:
        why = await printed(process, NO_DEMO)
        assert why.startswith("the certificate in GATEKEY_TLS_CERTIFICATE is not for 127.0.0.1")


@pytest.mark.slow
async def test_the_demo_in_a_database_of_ones_own_needs_the_root_token(databases: Databases, tmp_path: Path) -> None:
    variables = {"GATEKEY_DATABASE_URL": await databases.create(), "GATEKEY_PEPPERS": PEPPERS}
    # The first start knows the token, for it has made it.
    async with demo(tmp_path, **variables) as process:
        allowed, _ = await commands(process)
        assert allowed.startswith(f"GATEKEY_ADDRESS={process.address} GATEKEY_TOKEN=gk_")
        assert await paste(tmp_path, allowed) == 0

    async with demo(tmp_path, **variables) as process:
        why = await printed(process, NO_DEMO)
        assert why.startswith("it needs the root token, which only the first start knows")
        # The server goes on.
        token, address = new_secret("gk_"), process.address
        listed = await run_async("products", "list", GATEKEY_ADDRESS=address, GATEKEY_TOKEN=token)
        assert "(TOKEN_INVALID)" in listed.stderr

    async with demo(tmp_path, **variables, GATEKEY_ROOT_TOKEN=token) as process:
        allowed, denied = await commands(process)
        assert await paste(tmp_path, allowed, GATEKEY_ROOT_TOKEN=token) == 0
        assert await paste(tmp_path, denied, GATEKEY_ROOT_TOKEN=token) == 3
        assert token not in "".join(process.output)


@pytest.mark.parametrize(
    ("listen", "names", "host"),
    [
        ("0.0.0.0:1", None, "127.0.0.1"),
        ("[::]:1", None, "[::1]"),
        ("10.0.0.1:1", None, "10.0.0.1"),
        ("0.0.0.0:1", (NAMED, LOCALHOST), "127.0.0.1"),
        ("0.0.0.0:1", (NAMED,), "localhost"),
        ("[::]:1", (NAMED,), "localhost"),
        ("127.0.0.1:1", (ELSEWHERE,), "127.0.0.1"),
        ("10.0.0.1:1", (NAMED,), "10.0.0.1"),
    ],
)
def test_clients_on_this_machine_are_told_a_host_that_they_can_use(
    listen: str, names: tuple[x509.GeneralName, ...] | None, host: str
) -> None:
    certificate = AUTHORITY.issue(*names).certificate if names is not None else None
    assert _host_for_clients(listen, certificate) == host


@pytest.mark.parametrize(
    ("name", "host", "good"),
    [
        (LOCALHOST, "127.0.0.1", True),
        (LOCALHOST, "127.0.0.2", False),
        (LOCALHOST, "localhost", False),
        (NAMED, "localhost", True),
        (NAMED, "127.0.0.1", False),
        (ELSEWHERE, "gatekey.example", True),
        (x509.DNSName("*.example"), "gatekey.example", True),
        (x509.DNSName("*.example"), "a.gatekey.example", False),
        (x509.UniformResourceIdentifier("spiffe://localhost"), "localhost", False),
    ],
)
def test_which_hosts_a_certificate_is_good_for(name: x509.GeneralName, host: str, good: bool) -> None:
    assert is_good_for(AUTHORITY.issue(name).certificate, host) is good


def test_a_certificate_without_names_is_good_for_no_host() -> None:
    assert not is_good_for(AUTHORITY.issue().certificate, "localhost")
