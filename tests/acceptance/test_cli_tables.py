"""What people read and write at the command line: tables, narrow terminals, spellings, hints."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gatekey
import pytest
import typer
from cryptography import x509
from gatekey.cli import app, fields
from gatekey.cli.connection import find_endpoint
from gatekey.cli.problems import Failure
from gatekey.v1 import (
    api_key_service_pb2,
    audit_service_pb2,
    check_service_pb2,
    machine_user_service_pb2,
    member_service_pb2,
    tenant_service_pb2,
)

from tests.support.certificates import LOCALHOST, Authority
from tests.support.cli import GATEKEY, Cli, endpoint_of, environment
from tests.support.databases import Databases
from tests.support.server import PEPPERS, ServerProcess


def on_terminal(cli: Cli, *arguments: str, columns: int, **variables: str) -> str:
    """What the program prints on a terminal of a width."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(follower, "wb") as terminal:
        done = subprocess.Popen(
            [GATEKEY, *arguments],
            cwd=cli.cwd,
            env={"TERM": "xterm", **environment(**variables)},
            stdin=terminal,
            stdout=terminal,
            stderr=subprocess.PIPE,
        )
    text = b""
    while True:
        try:
            more = os.read(leader, 1 << 16)
        except OSError:  # The other end is closed.
            break
        text += more
    os.close(leader)
    assert done.communicate(timeout=30)[1] == b""
    assert done.returncode == 0
    return text.decode().replace("\r\n", "\n")


@pytest.fixture(scope="module")
def rotated(cli: Cli) -> Any:
    """A key of `u_42` with an old secret."""
    created = cli.json(
        *("keys", "create", "heyoo", "acme", "--name", "Old", "--member", "u_42", "--mode", "READ_ONLY"),
        *("--description", "For CI", "--label", "team=a", "--label", "env=test"),
    )
    cli("check", created["secret"], "campaigns", "read")
    return cli.json("keys", "rotate", created["apiKey"]["name"], "--grace", "1h")["apiKey"]


@pytest.mark.slow
def test_a_table_that_is_too_wide_becomes_records(cli: Cli, rotated: Any) -> None:
    key = rotated["name"].rpartition("/")[2]
    wide = on_terminal(cli, "keys", "list", "heyoo", "acme", columns=300)
    narrow = on_terminal(cli, "keys", "list", "heyoo", "acme", columns=40)
    assert wide.startswith("\x1b[1mID\x1b[0m")
    record = next(part for part in narrow.split("\n\n") if key in part)
    lines = dict(re.split(r" {2,}", re.sub(r"\x1b\[\d*m", "", line), maxsplit=1) for line in record.splitlines())
    assert lines["ID"] == key
    assert (lines["Display name"], lines["Owner"], lines["Mode"]) == ("Old", "members/u_42", "read-only")
    assert "…" not in lines["ID"]


@pytest.mark.slow
def test_what_is_piped_is_neither_narrow_nor_coloured(cli: Cli, rotated: Any) -> None:
    table = cli("keys", "list", "heyoo", "acme", COLUMNS="40", FORCE_COLOR="1").out
    (line,) = [line for line in table.splitlines() if rotated["name"].rpartition("/")[2] in line]
    assert "members/u_42   read-only" in line
    assert "\x1b" not in table


@pytest.mark.slow
def test_styles_are_for_terminals_that_want_them(cli: Cli) -> None:
    assert "\x1b[1m" in on_terminal(cli, "tenants", "list", "heyoo", columns=200)
    assert "\x1b" not in on_terminal(cli, "tenants", "list", "heyoo", columns=200, NO_COLOR="1")
    assert "\x1b" not in on_terminal(cli, "tenants", "list", "heyoo", columns=200, TERM="dumb")


@pytest.mark.slow
def test_keys_tell_their_use_their_end_and_their_old_secret(cli: Cli, rotated: Any) -> None:
    new, old = sorted(rotated["secrets"], key=lambda secret: "expireTime" in secret)
    until = old["expireTime"].replace("T", " ").partition(".")[0].rstrip("Z") + "Z"
    details = cli("keys", "get", rotated["name"]).out
    (secrets,) = re.findall(r"^Secret +(.*)$", details, re.MULTILINE)
    shown = [f"{new['hint']}…", f"{old['hint']}… (old, works until {until})"]
    assert secrets in (", ".join(shown), ", ".join(shown[::-1]))
    assert re.search(r"^Description +For CI$", details, re.MULTILINE)
    assert re.search(r"^Labels +env=test team=a$", details, re.MULTILINE)
    assert re.search(r"^Last use +20\d\d-", details, re.MULTILINE)

    made = cli.json("keys", "create", "heyoo", "acme", "--name", "Gone", "--member", "u_42", "--mode", "readOnly")
    cli("keys", "revoke", made["apiKey"]["name"], "--reason", "left the company")
    lines = cli("keys", "list", "heyoo", "acme").out.splitlines()
    assert next(line for line in lines if "Gone" in line).endswith("   left the company")
    assert f"{old['hint']}… (old, works until {until})" in next(line for line in lines if " Old " in line)
    details = cli("keys", "get", made["apiKey"]["name"]).out
    assert re.search(r"^Revoked +20\d\d-", details, re.MULTILINE)
    assert re.search(r"^Reason +left the company$", details, re.MULTILINE)


@pytest.mark.slow
def test_tokens_are_listed_rotated_and_deleted(cli: Cli) -> None:
    made = cli.json(
        "tokens", "create", "--name", "Listed", "--grant", "products/heyoo/checks:create", "--description", "x"
    )
    key = made["apiKey"]["name"].rpartition("/")[2]
    (line,) = [line for line in cli("tokens", "list").out.splitlines() if "Listed" in line]
    assert re.fullmatch(rf"{key}   Listed +products/heyoo/checks:create +active", line)
    assert any(
        re.search(r"^key_\S+   Root token +all .*20\d\d", line) for line in cli("tokens", "list").out.splitlines()
    )
    rotated = cli.json("tokens", "rotate", key, "--grace", "1h")
    assert rotated["secret"] != made["secret"]
    assert len(rotated["apiKey"]["secrets"]) == 2
    assert cli("tokens", "delete", key).out.startswith(f"Deleted {made['apiKey']['name']} (")
    assert key not in cli("tokens", "list").out


@pytest.mark.parametrize("mode", ["read-only", "READ_ONLY", "Read_Only", "readOnly", "ACCESS_MODE_READ_ONLY"])
def test_a_mode_may_be_spelt_as_it_is_anywhere(cli: Cli, mode: str) -> None:
    key = cli.json("keys", "create", "heyoo", "acme", "--name", "M", "--member", "u_42", "--mode", mode, "--dry-run")
    assert key["apiKey"]["mode"] == "ACCESS_MODE_READ_ONLY"


def test_the_python_client_takes_any_spelling_of_a_mode_too(cli: Cli) -> None:
    endpoint = endpoint_of(cli.cwd)
    with gatekey.Client(endpoint.address, token=endpoint.token) as client:
        keys = client.tenant("heyoo", "acme").keys
        spellings: list[Any] = ["READ_ONLY", "read-only", "ACCESS_MODE_READ_ONLY"]
        made = [keys.create("M", member="u_42", mode=mode, validate_only=True) for mode in spellings]
        assert {gatekey.v1.types_pb2.AccessMode.Name(each.api_key.mode) for each in made} == {"ACCESS_MODE_READ_ONLY"}
        wrong: Any = "NONE"
        with pytest.raises(ValueError, match="'NONE' is no access mode: ALL, READ_ONLY or RESTRICTED is required"):
            keys.create("M", member="u_42", mode=wrong)


def test_a_token_for_a_product_that_is_not_there_is_warned_of(cli: Cli) -> None:
    variables = {"GATEKEY_CONFIG": str(cli.cwd / ".gatekey" / "client.toml")}
    for grant, hint in (("products/heyo/checks:create", "; is it `heyoo`?"), ("products/zzz/checks:create", "")):
        done = subprocess.run(
            [GATEKEY, "tokens", "create", "--name", "typo", "--grant", grant, "--dry-run", "-o", "json"],
            env=environment(**variables),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0
        assert done.stderr == f"warning: there is no product `{grant.split('/')[1]}`{hint}\n"
        assert json.loads(done.stdout)["secretWithheld"]


@pytest.mark.slow
def test_an_unknown_key_may_be_known_to_another_token(cli: Cli, secret: str) -> None:
    token = cli.json("tokens", "create", "--name", "bitsy", "--grant", "products/bitsy/checks:create")["secret"]
    bitsy = Cli(cli.cwd, {"GATEKEY_TOKEN": token, "GATEKEY_ADDRESS": endpoint_of(cli.cwd).address})
    unknown = bitsy("check", secret, "links", "read", code=3).out
    assert "Hint     the service token may check keys of bitsy only; all others are unknown to it\n" in unknown
    other = cli("check", secret, "campaigns", "read", "--product", "bitsy", code=3).out
    assert "Hint     a key of another product than bitsy is unknown as well\n" in other


def test_an_expiry_may_be_a_day(cli: Cli) -> None:
    made = cli.json(
        *("keys", "create", "heyoo", "acme", "--name", "D", "--member", "u_42", "--mode", "all"),
        *("--expires", "2099-01-01", "--dry-run"),
    )
    assert made["apiKey"]["expireTime"] == "2099-01-01T00:00:00Z"


def test_everything_that_is_read_can_be_had_as_json() -> None:
    def leaves(command: Any, *path: str) -> Iterator[tuple[str, Any]]:
        for name, each in getattr(command, "commands", {}).items():
            yield from leaves(each, *path, name)
        if path and not hasattr(command, "commands"):
            yield " ".join(path), command

    reading = {"check", "keys identify"}
    for name, command in leaves(typer.main.get_command(app.app)):
        if name in reading or name.endswith((" list", " get")):
            assert any("--output" in parameter.opts for parameter in command.params), name


def test_the_version_is_printed(tmp_path: Path) -> None:
    assert re.fullmatch(r"gatekey \d+\.\d+\.\d+\n", Cli(tmp_path)("--version").out)


# Addresses


def test_several_addresses_stand_in_for_each_other(cli: Cli) -> None:
    endpoint = endpoint_of(cli.cwd)
    both: dict[str, Any] = {"GATEKEY_ADDRESS": f"127.0.0.1:1, {endpoint.address}", "GATEKEY_TOKEN": endpoint.token}
    assert "acme" in cli("tenants", "list", "heyoo", **both).out
    both["GATEKEY_ADDRESS"] = "127.0.0.1:1,localhost:2"
    refused = cli("tenants", "list", "heyoo", code=1, **both).err
    assert refused.startswith("error: several addresses have to be all IPv4 or all IPv6")


CREATE = ("keys", "create", "heyoo", "acme", "--name", "x", "--mode", "all", "--member", "u_42")
MUTUAL = {"GATEKEY_CA": "ca.pem", "GATEKEY_CLIENT_CERTIFICATE": "a.pem"}


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"GATEKEY_CA": "none.pem"}, "GATEKEY_CA: none.pem: No such file or directory (TLS_INVALID)"),
        ({"GATEKEY_CA": "garbage.pem"}, "GATEKEY_CA: garbage.pem holds no certificate in PEM (TLS_INVALID)"),
        ({"GATEKEY_CA": "."}, "GATEKEY_CA: .: Is a directory (TLS_INVALID)"),
        ({"GATEKEY_CA": "/dev/zero"}, "GATEKEY_CA: /dev/zero has more than 1048576 bytes (TLS_INVALID)"),
        ({"GATEKEY_CA": "bad.pem"}, "GATEKEY_CA: bad.pem holds a certificate that cannot be read (TLS_INVALID)"),
        (MUTUAL | {"GATEKEY_CLIENT_KEY": "garbage.pem"}, "GATEKEY_CLIENT_KEY: garbage.pem holds no private key in PEM"),
        (MUTUAL | {"GATEKEY_CLIENT_KEY": "b.key"}, "GATEKEY_CLIENT_KEY: b.key is not the key of a.pem (TLS_INVALID)"),
        (MUTUAL | {"GATEKEY_CLIENT_KEY": "bad.key"}, "GATEKEY_CLIENT_KEY: bad.key holds a private key that cannot be"),
        (MUTUAL | {"GATEKEY_CLIENT_KEY": "locked.key"}, "GATEKEY_CLIENT_KEY: locked.key is encrypted, and there is"),
        ({"GATEKEY_CLIENT_KEY": "a.key"}, "GATEKEY_CLIENT_CERTIFICATE and GATEKEY_CLIENT_KEY need each other"),
        ({"GATEKEY_ACTOR": "products/é"}, "GATEKEY_ACTOR: products/é is not the name of a member or machine user"),
        ({"GATEKEY_ADDRESS": "localhost"}, "the address 'localhost' is not HOST:PORT (ADDRESS_INVALID)"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], problem: str
) -> None:
    (tmp_path / "garbage.pem").write_text("garbage")
    authority = Authority("ours")
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    for name in "ab":
        authority.issue(LOCALHOST).write(tmp_path, name)
    for path, kind in (("bad.pem", "CERTIFICATE"), ("bad.key", "PRIVATE KEY"), ("locked.key", "ENCRYPTED PRIVATE KEY")):
        (tmp_path / path).write_text(f"-----BEGIN {kind}-----\nbm9uc2Vuc2U=\n-----END {kind}-----\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Failure) as caught:
        find_endpoint({"GATEKEY_ADDRESS": "127.0.0.1:1", "GATEKEY_TOKEN": "gk_x", **variables})
    assert caught.value.lines[0].startswith(problem)
    # The library says the same, where the variables are its own as well.
    if "TLS_INVALID" in caught.value.lines[0]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match=r"^GATEKEY_C") as same:
            gatekey.Client("127.0.0.1:1", token="gk_x")
        assert str(same.value) == caught.value.message


def test_a_token_in_quotes_is_told_so(tmp_path: Path) -> None:
    refused = Cli(tmp_path)("products", "list", code=1, GATEKEY_TOKEN="'gk_x'").err
    assert (
        refused
        == "error: GATEKEY_TOKEN: is in quotes, which would be a part of the token: leave them out (TOKEN_INVALID)\n"
    )


def test_a_name_that_stands_for_no_address_is_not_taken_for_tls(tmp_path: Path) -> None:
    variables = {"GATEKEY_ADDRESS": "gatekey.invalid:1", "GATEKEY_TOKEN": "gk_x"}
    refused = Cli(tmp_path)("products", "list", code=1, **variables).err
    assert "error: no Gatekey responds at gatekey.invalid:1 (UNAVAILABLE)\n" in refused
    assert "GATEKEY_CA" not in refused


@pytest.mark.slow
async def test_plain_text_to_tls_and_tls_to_plain_text_name_the_variable(
    databases: Databases, cli: Cli, tmp_path: Path
) -> None:
    ours, foreign = Authority.make("ours", "foreign")
    (tmp_path / "foreign.pem").write_bytes(foreign.pem)
    certificate, key = ours.issue(LOCALHOST, x509.DNSName("localhost")).write(tmp_path)
    server = await ServerProcess.start(
        {
            "GATEKEY_DATABASE_URL": await databases.create(),
            "GATEKEY_PEPPERS": PEPPERS,
            "GATEKEY_TLS_CERTIFICATE": str(certificate),
            "GATEKEY_TLS_KEY": str(key),
        }
    )
    try:
        tls = {"GATEKEY_ADDRESS": server.address, "GATEKEY_TOKEN": "gk_x"}
        refused = cli("products", "list", code=1, **tls).err
        assert "if the server speaks TLS, GATEKEY_CA has to name the file of its authorities" in refused
        refused = cli("products", "list", code=1, **tls, GATEKEY_CA=str(tmp_path / "foreign.pem")).err
        assert "GATEKEY_CA does not vouch for the server's certificate" in refused
        plain = {"GATEKEY_ADDRESS": endpoint_of(cli.cwd).address, "GATEKEY_TOKEN": "gk_x"}
        refused = cli("products", "list", code=1, **plain, GATEKEY_CA=str(tmp_path / "foreign.pem")).err
        assert "the server does not speak TLS: leave GATEKEY_CA out" in refused
    finally:
        assert await server.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "begin"),
    [
        (("keys", "create", "heyoo", "acme", "--name", "x", "--member", "u_42"), "--mode: this product has no default"),
        ((*CREATE, "--expires", "2020-01-01"), "--expires or --ttl: lies in the past"),
        ((*CREATE, "--label", "=x"), "--label"),
        (("keys", "create", "heyoo", "acme", "--name", "", "--mode", "all", "--member", "u_42"), "--name: "),
        (("members", "add", "heyoo", "acme", "u_7", "--role", "nobody"), "--role: "),
        (("members", "add", "heyoo", "acme", "u 7", "--role", "member"), "MEMBER: "),
        (("tenants", "create", "heyoo", "A B"), "TENANT: "),
        (("check", "hey_x", "campaigns//", "read"), "RESOURCE: "),
        (("check", "hey_x", "campaigns", "Read it"), "ACTION: "),
    ],
)
def test_an_error_names_what_was_typed(cli: Cli, arguments: tuple[str, ...], begin: str) -> None:
    assert cli(*arguments, code=1).err.startswith(f"error: {begin}")


def test_every_field_that_people_know_otherwise_is_one_of_a_request() -> None:
    known = {"gatekey-actor"}
    for module in (
        api_key_service_pb2,
        audit_service_pb2,
        check_service_pb2,
        machine_user_service_pb2,
        member_service_pb2,
        tenant_service_pb2,
    ):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            if message.name.endswith("Request"):
                for field in message.fields:
                    known.add(field.name)
                    known |= {
                        f"{field.name}.{each.name}"
                        for each in (field.message_type.fields if field.message_type else ())
                    }
    assert set(fields._TYPED) <= known
