"""What a command does where its output, its server or its user goes away, and with text as other programs write it."""

import contextlib
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from gatekey.core.secrets import new_secret

from tests.support.cli import GATEKEY, INDEPENDENT, Cli, endpoint_of, environment
from tests.support.databases import Databases
from tests.support.server import PEPPERS

SECRET = re.compile(r"(?:hey|gk)_[0-9A-Za-z]{38}")
CREATE = ("keys", "create", "heyoo", "acme", "--member", "u_42", "--grant", "campaigns:read", "--name")


def shell(cli: Cli, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which `"$@"` is the program with the arguments."""
    return subprocess.run(
        ["bash", "-c", script, "bash", GATEKEY, *arguments],
        cwd=cli.cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def names(cli: Cli) -> list[str]:
    return [key["displayName"] for key in cli.json("keys", "list", "heyoo", "acme")["apiKeys"]]


# A secret that does not get out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("full", '"$@" > /dev/full'),
        ("closed", '"$@" >&-'),
        ("unread", 'mkfifo unread.pipe; exec 3<>unread.pipe 4>unread.pipe; exec 3>&-; "$@" >&4'),
    ],
)
@pytest.mark.parametrize("output", ["table", "json"])
def test_no_key_is_made_where_its_secret_cannot_be_written(cli: Cli, name: str, script: str, output: str) -> None:
    (cli.cwd / "unread.pipe").unlink(missing_ok=True)
    done = shell(cli, script, *CREATE, name, "-o", output)
    assert done.returncode == 1, done
    assert done.stderr.startswith("error: standard output ")
    assert "nothing was done (OUTPUT_FAILED)" in done.stderr
    assert name not in names(cli)


def test_a_secret_that_is_lost_all_the_same_names_its_key(cli: Cli, secret: str) -> None:
    # A file that may not grow is found out when it is written to, as a full file system is.
    limited = 'ulimit -f 0; trap "" XFSZ; "$@" > limited'
    done = shell(cli, limited, *CREATE, "limited")
    assert (done.returncode, done.stdout) == (4, "")
    lines = done.stderr.splitlines()
    (key,) = [key for key in cli.json("keys", "list", "heyoo", "acme")["apiKeys"] if key["displayName"] == "limited"]
    assert lines[0] == (
        f"error: {key['name']} was created, but its secret could not be written: File too large (SECRET_LOST)"
    )
    assert f"    gatekey keys rotate {key['name']}" in done.stderr
    assert f"    gatekey keys delete {key['name']}" in done.stderr
    assert not SECRET.search(done.stderr)

    rotated = shell(cli, limited, "keys", "rotate", key["name"], "-o", "json")
    assert rotated.returncode == 4
    assert rotated.stderr.startswith(f"error: {key['name']} was rotated, but its secret could not be written: ")
    token = shell(cli, limited, "tokens", "create", "--name", "lost", "--grant", "products/heyoo/checks:create")
    assert token.returncode == 4
    assert token.stderr.startswith("error: products/gatekey/tenants/system/apiKeys/key_")
    assert shell(cli, limited, "keys", "rotate", key["name"], "--dry-run").returncode == 1


def pass_on_until(listener: socket.socket, target: str, marker: bytes) -> None:
    """Pass one connection on to a server, and cut it where the server's answer holds the marker; then pass all on."""
    host, port = target.split(":")
    while True:
        try:
            here, _ = listener.accept()
        except OSError:
            return
        with here, socket.create_connection((host, int(port))) as there:
            forth = threading.Thread(target=pump, args=(here, there, None))
            forth.start()
            pump(there, here, marker)
            forth.join()
        marker = b"\0never\0"


def pump(source: socket.socket, sink: socket.socket, marker: bytes | None) -> None:
    with contextlib.suppress(OSError):
        while (data := source.recv(1 << 16)) and (marker is None or marker not in data):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def test_a_call_whose_answer_is_lost_is_repeated_and_makes_one_key(cli: Cli) -> None:
    endpoint = endpoint_of(cli.cwd)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        proxy = threading.Thread(target=pass_on_until, args=(listener, endpoint.address, b"hey_"))
        proxy.start()
        lost = cli(*CREATE, "repeated", code=4, GATEKEY_ADDRESS=address, GATEKEY_TOKEN=endpoint.token)
        listener.shutdown(socket.SHUT_RDWR)
        proxy.join(30)
    (key,) = [key for key in cli.json("keys", "list", "heyoo", "acme")["apiKeys"] if key["displayName"] == "repeated"]
    assert lost.out == ""
    assert lost.err.startswith(f"error: {key['name']} was created, but the connection broke when its secret was on the")
    assert "(SECRET_LOST)" in lost.err


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("tokens", "generate"), ("peppers", "generate"), ("products", "list")])
@pytest.mark.parametrize("script", ['"$@" > /dev/full', '"$@" >&-'])
def test_output_that_is_lost_is_a_failure(cli: Cli, arguments: Sequence[str], script: str) -> None:
    done = shell(cli, script, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: output cannot be written: ")


def test_nothing_is_printed_where_errors_cannot_be_either(cli: Cli) -> None:
    done = shell(cli, '"$@" >&- 2>&- <&-', *CREATE, "silent")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert "silent" not in names(cli)


@pytest.fixture
async def empty_database(databases: Databases) -> str:
    return await databases.create()


@pytest.mark.slow
def test_a_root_token_that_cannot_be_written_is_told_and_the_server_goes_on(
    empty_database: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    log = tmp_path / "log"
    with log.open("wb") as errors, Path("/dev/full").open("wb") as full:
        server = subprocess.Popen(
            [GATEKEY, "serve", "--listen", address],
            env=environment(GATEKEY_DATABASE_URL=empty_database, GATEKEY_PEPPERS=PEPPERS),
            cwd=tmp_path,
            stdout=full,
            stderr=errors,
        )
    try:
        wrong = Cli(tmp_path, {"GATEKEY_ADDRESS": address, "GATEKEY_TOKEN": new_secret("gk_")})
        refused = b"UNAVAILABLE"
        for _ in range(100):
            if b"UNAVAILABLE" not in refused:
                break
            refused = subprocess.run(
                [GATEKEY, "products", "list"], env=environment(**wrong.variables), capture_output=True, check=False
            ).stderr
        assert b"TOKEN_INVALID" in refused
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    assert "a root token was made, but it could not be written to standard output (SECRET_LOST)" in log.read_text()
    assert not SECRET.search(log.read_text())


# Interruption, and a server that goes away


def test_a_server_that_goes_away_in_the_middle_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [GATEKEY, "products", "list"],
            env=environment(GATEKEY_ADDRESS=address, GATEKEY_TOKEN=new_secret("gk_")),
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        listener.accept()[0].close()
    _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert error.startswith(f"error: no Gatekey responds at {address} (UNAVAILABLE)\n")
    assert "Traceback" not in error


@pytest.mark.slow
@pytest.mark.parametrize(("verbosity", "writes"), [({}, False), ({"GRPC_VERBOSITY": "ERROR"}, True)])
def test_what_grpc_writes_of_its_own_accord_is_not_shown(
    tmp_path: Path, verbosity: dict[str, str], writes: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [GATEKEY, "products", "list"],
            env=environment(GATEKEY_ADDRESS=address, GATEKEY_TOKEN=new_secret("gk_"), **verbosity),
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = listener.accept()
        with connection:
            # Empty settings, and the end of the connection for ENHANCE_YOUR_CALM.
            reason = b"too_many_pings"
            payload = (0).to_bytes(4) + (11).to_bytes(4) + reason
            connection.sendall(b"\0\0\0\4\0\0\0\0\0" + len(payload).to_bytes(3) + b"\7\0\0\0\0\0" + payload)
            _, error = process.communicate(timeout=30)
    assert (".cc:" in error) == writes, error
    assert process.returncode == 1


@pytest.mark.parametrize("arguments", [("tenants", "create", "heyoo", "x"), ("tenants", "get", "heyoo", "x")])
def test_an_interrupted_change_may_have_been_made(tmp_path: Path, arguments: Sequence[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [GATEKEY, *arguments],
            env=environment(GATEKEY_ADDRESS=address, GATEKEY_TOKEN=new_secret("gk_")),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    told = "warning: interrupted: what was asked may still have been done\n"
    assert err == (told if "create" in arguments else "")


@pytest.mark.parametrize(
    ("arguments", "module"),
    [
        (("keys", "list", "heyoo", "acme"), "grpc._cython"),
        (("keys", "list", "heyoo", "acme"), "typer.core"),
        (("serve", "--listen", "127.0.0.1:0"), "grpc._cython"),
        (("serve", "--listen", "127.0.0.1:0"), "asyncpg"),
    ],
)
def test_an_interrupt_before_the_command_line_is_there_is_quiet(
    tmp_path: Path, arguments: Sequence[str], module: str
) -> None:
    process = subprocess.Popen(
        [GATEKEY, *arguments],
        # Tells each module once it is imported.
        env=environment(PYTHONPROFILEIMPORTTIME="1"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    give_up = threading.Timer(30, process.kill)
    give_up.start()
    assert any(line.endswith(f" {module}\n") for line in process.stderr)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    give_up.cancel()
    assert (process.returncode, out) == (130, "")
    assert [line for line in err.splitlines() if not line.startswith("import time:")] == []


def test_an_unexpected_error_shows_its_traceback_only_on_request(cli: Cli, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    # What a broken installation looks like: a module of the command line that fails when it is used.
    (broken / "sitecustomize.py").write_text(
        "import gatekey.cli.keys\ngatekey.cli.keys.read_secret = lambda text: {}[text]\n"
    )
    secret = new_secret("hey_")
    for options, variables in (((), {}), (("--debug",), {}), ((), {"GATEKEY_DEBUG": "1"})):
        done = shell(cli, '"$@"', *options, "keys", "identify", secret, PYTHONPATH=str(broken), **variables)
        assert done.returncode == 1
        assert done.stderr.startswith("error: unexpected KeyError: this is a fault of Gatekey\n")
        assert ("Traceback" in done.stderr) is bool(options or variables)
        assert secret not in done.stderr


# Text as editors, terminals and other programs write it


@pytest.mark.parametrize("text", ["{}\n", "{}\r\n", "\ufeff{}\n", " {}\u00a0\n", "\ufeff\t{}\r\n{}\n"])
def test_a_key_from_standard_input_is_stripped(cli: Cli, secret: str, text: str) -> None:
    assert cli("check", "-", "campaigns/c", "read", stdin=text.replace("{}", secret)).out.startswith("Allowed\n")


def test_what_is_not_utf8_is_told(cli: Cli, secret: str) -> None:
    problems = {
        secret.encode("utf-16"): "is UTF-16: save it as UTF-8",
        b"\xff" + secret.encode(): "is not UTF-8 at byte 1",
    }
    for data, problem in problems.items():
        (cli.cwd / "key.txt").write_bytes(data)
        done = shell(cli, '"$@" < key.txt', "check", "-", "campaigns/c", "read")
        assert (done.returncode, done.stderr) == (1, f"error: standard input {problem} (ENCODING_INVALID)\n")


@pytest.mark.parametrize("text", ["\ufeff{}", "{}\u00a0\n", " {}\r\n"])
def test_a_token_from_the_environment_is_stripped(cli: Cli, secret: str, text: str) -> None:
    endpoint = endpoint_of(cli.cwd)
    variables: dict[str, Any] = {
        "GATEKEY_TOKEN": text.replace("{}", endpoint.token),
        "GATEKEY_ADDRESS": f" {endpoint.address}\n",
    }
    assert cli("check", secret, "campaigns/c", "read", **variables).out.startswith("Allowed\n")


def test_client_toml_may_have_been_through_an_editor_of_another_system(cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "client.toml"
    text = (cli.cwd / ".gatekey" / "client.toml").read_text()
    config.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    config.chmod(0o600)
    assert "acme" in cli("tenants", "list", "heyoo", GATEKEY_CONFIG=str(config)).out


@pytest.mark.slow
def test_a_spec_may_have_been_through_an_editor_of_another_system(cli: Cli) -> None:
    spec = cli.cwd / "windows.yaml"
    spec.write_bytes(b"\xef\xbb\xbf" + INDEPENDENT.replace("\n", "\r\n").encode())
    cli("products", "apply", spec, "--dry-run")
    assert cli("products", "apply", "-", "--dry-run", stdin=INDEPENDENT).out.startswith("Dry run")
    refused = cli("products", "apply", "-", "-", "--dry-run", stdin=INDEPENDENT, code=2).err
    assert refused == "error: `-` is given more than once\n"
