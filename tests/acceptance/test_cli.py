"""The command line as people and programs use it: the real program, as a process, against a real server."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from base64 import b64decode
from datetime import timedelta
from pathlib import Path

import pytest
from gatekey import _methods as methods
from gatekey.cli import local, specs
from gatekey.cli.calls import Connection
from gatekey.cli.connection import Endpoint, find_endpoint
from gatekey.cli.problems import Failure
from gatekey.core.secrets import is_well_formed, new_secret
from gatekey.v1 import check_service_pb2, product_service_pb2, product_spec_pb2, tenant_service_pb2, types_pb2

from tests.support.cli import (
    EXAMPLES,
    GATEKEY,
    INDEPENDENT,
    PRODUCTS,
    Cli,
    Served,
    add_member,
    create_tenant,
    endpoint_of,
    environment,
    inside,
)


@pytest.fixture(scope="module")
def server(cli_server: Cli) -> Cli:
    """The program, where a server of its own has its data."""
    return cli_server


@pytest.fixture(scope="module")
def gatekey(cli_connection: Connection) -> Connection:
    """A connection to the same server, for what a test needs and is not about."""
    return cli_connection


# Products


@pytest.mark.slow
def test_products_are_applied_from_files(server: Cli, tmp_path: Path) -> None:
    spec = tmp_path / "probe.yaml"
    spec.write_text(INDEPENDENT)
    applied = server("products", "apply", spec).out.splitlines()
    assert applied[1].split() == ["probe", "prb_", "all", "1"]
    assert server.json("products", "apply", spec)["products"][0]["specVersion"] == "1"
    applied = server("products", "apply", spec).out.splitlines()
    assert applied[0].split() == ["ID", "Display", "name", "Keys", "Modes", "Version"]
    assert applied[1].split() == ["probe", "prb_", "all", "1,", "unchanged"]

    listed = server.json("products", "list")
    assert {"probe", "gatekey", *PRODUCTS} <= {
        product["name"].removeprefix("products/") for product in listed["products"]
    }
    shown = server("products", "get", "products/probe").out
    assert "prb_" in shown
    assert "Presented as" in shown
    assert "x-key: …" in shown

    assert set(server.json("products", "delete", "probe")["deleted"].values()) == {"0"}
    assert "PRODUCT_NOT_FOUND" in server("products", "get", "probe", code=1).err


def test_a_products_spec_goes_out_as_yaml_and_back_in(server: Cli, tmp_path: Path) -> None:
    spec = tmp_path / "codeqr.yaml"
    spec.write_text(server("products", "get", "codeqr", "--output", "yaml").out)
    assert specs.read_spec(spec) == specs.read_spec(EXAMPLES / "codeqr.yaml")
    # An unchanged spec is no new version.
    assert server.json("products", "apply", spec)["products"][0]["specVersion"] == "1"


@pytest.mark.slow
def test_a_spec_that_strands_a_member_needs_force(server: Cli, gatekey: Connection, tmp_path: Path) -> None:
    spec = tmp_path / "probe.yaml"
    spec.write_text(INDEPENDENT)
    server("products", "apply", spec)
    add_member(gatekey, create_tenant(gatekey, "probe", "t"), "u", "guest")
    spec.write_text(INDEPENDENT.replace(", {role: guest}", ""))
    refused = server("products", "apply", spec, code=1)
    assert refused.err.startswith(f"error: {spec}: ")
    assert "(SPEC_STRANDS)" in refused.err
    assert server.json("products", "apply", spec, "--force")["products"][0]["specVersion"] == "2"

    assert "(PRODUCT_HAS_TENANTS)" in server("products", "delete", "probe", code=1).err
    assert server("products", "delete", "probe", "--force").out.startswith("Deleted products/probe (tenants: 1")


def test_the_servers_problems_with_a_spec_are_told_with_their_paths(server: Cli, tmp_path: Path) -> None:
    spec = tmp_path / "probe.yaml"
    spec.write_text(INDEPENDENT.replace("things", "my things").replace('resource: "*"', "resource: other"))
    lines = server("products", "apply", spec, code=1).err.splitlines()
    assert lines[0] == f"error: {spec}: the request has 2 problems (SPEC_INVALID)"
    assert lines[1].startswith("  spec.collections[0].pattern: ")
    assert lines[1].endswith(" (COLLECTION_INVALID)")
    assert lines[2] == "  spec.roles[0].grants[0].resource: `other` covers no declared collection (RESOURCE_UNKNOWN)"


def test_no_spec_is_applied_unless_all_can_be_read(server: Cli, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(INDEPENDENT)
    (tmp_path / "bad.yaml").write_text(f"{INDEPENDENT}roles: []\ncolour: red\n")
    files = [tmp_path / name for name in ("good.yaml", "bad.yaml", "none.yaml")]
    refused = server("products", "apply", *files, code=1).err
    assert refused.splitlines() == [
        "error: 2 specs cannot be used; nothing was applied",
        f"  {files[1]} has 2 problems (SPEC_MALFORMED)",
        "  spec.roles: line 9: is given more than once (FIELD_DUPLICATE)",
        "  spec.colour: line 10: there is no such field (FIELD_UNKNOWN)",
        f"  {files[2]}: No such file or directory (FILE_UNREADABLE)",
    ]
    assert "PRODUCT_NOT_FOUND" in server("products", "get", "probe", code=1).err


def problems(path: Path, text: str | bytes) -> list[str]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(Failure) as caught:
        specs.read_spec(path)
    return list(caught.value.more)


def test_every_problem_of_a_specs_form_is_told(tmp_path: Path) -> None:
    text = """\
product: 5
displayNam: x
roles:
  - role: owner
    owner: "yes"
    grants: {resource: a}
  - 7
  - grants:
    - resource: "*"
      actions: [read, null, [x]]
secretKeys:
  prefix: hey_
  prefix: hey_
  modes: [ACCESS_MODE_ALL, all, true, 99]
  restricted: {scope: SCOPE_X}
  maxLifetime: 1y
  max_lifetime: 60s
tenantNoun: 2027-01-01
"""
    modes = "one of ACCESS_MODE_ALL, ACCESS_MODE_READ_ONLY, ACCESS_MODE_RESTRICTED"
    scopes = "one of SCOPE_ACTIONS, SCOPE_RESOURCES"
    duration = "a duration such as `90s`, `15m`, `12h`, `180d` or `26w`"
    assert problems(tmp_path / "spec.yaml", text) == [
        "spec.product: line 1: text, in quotes if need be, is needed, not `5` (TYPE_INVALID)",
        "spec.displayNam: line 2: there is no such field; is it `displayName`? (FIELD_UNKNOWN)",
        "spec.roles[0].owner: line 5: `true` or `false` is needed, not `yes` (TYPE_INVALID)",
        "spec.roles[0].grants: line 6: a list is needed, not fields (TYPE_INVALID)",
        "spec.roles[1]: line 7: fields are needed, not `7` (TYPE_INVALID)",
        "spec.roles[2].grants[0].actions[1]: line 10: text, in quotes if need be, is needed, not `null` (TYPE_INVALID)",
        "spec.roles[2].grants[0].actions[2]: line 10: text, in quotes if need be, is needed, not a list (TYPE_INVALID)",
        "spec.secretKeys.prefix: line 13: is given more than once (FIELD_DUPLICATE)",
        f"spec.secretKeys.modes[1]: line 14: {modes} is needed, not `all` (ENUM_UNKNOWN)",
        f"spec.secretKeys.modes[2]: line 14: {modes} is needed, not `true` (ENUM_UNKNOWN)",
        f"spec.secretKeys.modes[3]: line 14: {modes} is needed, not `99` (ENUM_UNKNOWN)",
        f"spec.secretKeys.restricted.scope: line 15: {scopes} is needed, not `SCOPE_X` (ENUM_UNKNOWN)",
        f"spec.secretKeys.maxLifetime: line 16: {duration} is needed, not `1y` (TYPE_INVALID)",
        "spec.secretKeys.maxLifetime: line 17: is given more than once (FIELD_DUPLICATE)",
        "spec.tenantNoun: line 18: text, in quotes if need be, is needed, not `2027-01-01` (TYPE_INVALID)",
    ]


def test_a_spec_is_written_as_people_say_it(tmp_path: Path) -> None:
    text = """\
secretKeys:
  modes: [ALL, ACCESS_MODE_READ_ONLY]
  owners: [TENANT]
  maxLifetime: 180d
publishableKeys: {maxLifetime: 90m}
machineUsers: {lifetime: INDEPENDENT}
"""
    (tmp_path / "spec.yaml").write_text(text)
    spec = specs.read_spec(tmp_path / "spec.yaml")
    assert list(spec.secret_keys.modes) == [types_pb2.ACCESS_MODE_ALL, types_pb2.ACCESS_MODE_READ_ONLY]
    assert list(spec.secret_keys.owners) == [product_spec_pb2.SecretKeyPolicy.OWNER_TENANT]
    assert spec.secret_keys.max_lifetime.ToTimedelta() == timedelta(days=180)
    assert spec.publishable_keys.max_lifetime.ToTimedelta() == timedelta(minutes=90)
    assert spec.machine_users.lifetime == product_spec_pb2.MachineUserPolicy.LIFETIME_INDEPENDENT


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "spec: is empty (REQUIRED)"),
        ("- a", "spec: line 1: fields are needed, not a list (TYPE_INVALID)"),
        ("a: b: c", "spec: line 1: mapping values are not allowed here (SYNTAX)"),
        ("product: a\nroles: *x", "spec: line 2: found undefined alias 'x' (SYNTAX)"),
        ("product: a\n---\nproduct: b", "spec: line 2: expected a single document in the stream, but found another"),
        (b"product: \xff", "spec: byte 10: invalid start byte (SYNTAX)"),
        ("roles: &a [*a]", "spec.roles[0]: line 1: fields are needed, not a list (TYPE_INVALID)"),
        ("<<: {product: a}", "spec.<<: line 1: there is no such field (FIELD_UNKNOWN)"),
        (
            "product: !!python/name:os.system",
            "spec.product: line 1: text, in quotes if need be, is needed, not nothing",
        ),
        ("[" * 2_000, "spec: is nested too deeply (SYNTAX)"),
        (
            f"x: &a [{'r, ' * 400}]\ny: &g [{'{actions: *a}, ' * 400}]\nroles: [{'{grants: *g}, ' * 400}]",
            "spec: has more than 100000 values (SPEC_TOO_LARGE)",
        ),
    ],
)
def test_what_is_no_spec_at_all_is_refused(tmp_path: Path, text: str | bytes, problem: str) -> None:
    assert problems(tmp_path / "spec.yaml", text)[0].startswith(problem)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("#" * (specs.MAX_BYTES + 1))
    with pytest.raises(Failure, match="more than 1048576 bytes"):
        specs.read_spec(path)


def test_text_that_looks_like_something_else_survives_yaml(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    for text in ("true", "null", "1e3", "2027-01-01", "*", "- a", "? a", ": a", "a: b", "#", "'", "<<", "é\U0001f600 "):
        spec = product_spec_pb2.ProductSpec(display_name=text, read_actions=[text])
        path.write_text(specs.write_spec(spec))
        assert specs.read_spec(path) == spec


# Tenants, people and keys


@pytest.mark.slow
def test_tenants(server: Cli) -> None:
    created = server.json("tenants", "create", "tally", "t-1", "--display-name", "First")
    assert created["name"] == "products/tally/tenants/t-1"
    assert created["displayName"] == "First"
    assert server.json("tenants", "list", "products/tally") == {"tenants": [created]}
    assert server("tenants", "get", "tally", "t-1").out.splitlines()[:3] == [
        "Name           products/tally/tenants/t-1",
        "Display name   First",
        "State          active",
    ]
    assert server.json("tenants", "delete", "products/tally", "t-1")["tenant"]["state"] == "STATE_DELETED"
    assert server("tenants", "list", "tally").out == "ID   Display name   State   Created   Deleted\n"
    assert "t-1" in server("tenants", "list", "tally", "--show-deleted").out


@pytest.mark.slow
def test_members_and_machine_users_are_listed_together_and_only_members_are_counted(
    server: Cli, gatekey: Connection, tmp_path: Path
) -> None:
    spec = tmp_path / "probe.yaml"
    spec.write_text(INDEPENDENT.replace("probe", "people").replace("prb_", "ppl_"))
    gatekey.call(methods.APPLY_PRODUCT, product_service_pb2.ApplyProductRequest(spec=specs.read_spec(spec)))
    tenant = create_tenant(gatekey, "people", "acme")
    member = server.json("members", "add", tenant, "u_42", "--role", "guest", "--display-name", "[red]:smile:")
    user = server.json("machine-users", "create", "people", "acme", "bot", "--display-name", "Bot")
    assert "guest" in server("members", "get", "people", "acme", "u_42").out
    assert "Bot" in server("machine-users", "get", user["name"]).out
    assert server.json("machine-users", "list", "people", "acme") == {"machineUsers": [user]}
    table = server("members", "list", tenant).out
    assert "u_42   member         guest   [red]:smile:" in table
    assert "bot    machine user   owner   Bot" in table
    assert table.endswith("\n\nUsers: 1 (machine users do not count)\n")

    people = {"people": [{"member": member}, {"machineUser": user}], "userCount": 1}
    assert server.json("members", "list", tenant) == people
    assert server("members", "remove", "people", "acme", "u_42").out == f"Deleted {member['name']} (members: 1)\n"
    assert server("machine-users", "delete", user["name"]).out == f"Deleted {user['name']} (machine users: 1)\n"
    assert server.json("machine-users", "list", tenant) == {"machineUsers": []}


def test_a_key_of_a_member(cli: Cli) -> None:
    made = cli(
        "keys", "create", "heyoo", "acme", "--name", "Site", "--member", "u_42", "--grant", "tags/a:b:read,write"
    )
    assert "\nPresent it as `Authorization: Bearer …`.\n" in made.out
    _, _, after = made.out.partition("\nThe secret, shown this once:\n\n    ")
    secret = after.strip()
    assert secret.startswith("hey_")
    assert is_well_formed(secret)
    shown = dict(line.split("  ", 1) for line in made.out.splitlines() if "  " in line[1:])
    name = shown["Name"].strip()
    assert shown["Grants"].strip() == "tags/a:b:read,write"
    assert shown["Mode"].strip() == "restricted"

    key = cli.json("keys", "get", "heyoo", "acme", name.rpartition("/")[2])
    assert key["grants"] == [{"resource": "tags/a:b", "actions": ["read", "write"]}]
    assert key["owner"] == "products/heyoo/tenants/acme/members/u_42"
    assert key in cli.json("keys", "list", "heyoo", "acme", "--member", key["owner"])["apiKeys"]
    assert secret not in cli("keys", "get", name).out
    assert cli("keys", "delete", name, "--dry-run").out == f"Would delete {name} (API keys: 1)\n"
    assert cli("keys", "delete", name).out == f"Deleted {name} (API keys: 1)\n"
    assert "(API_KEY_NOT_FOUND)" in cli("keys", "get", name, code=1).err


@pytest.mark.slow
def test_the_life_of_a_key(cli: Cli) -> None:
    created = cli.json(
        "keys", "create", "heyoo", "acme", "--name", "Life", "--member", "u_42", "--mode", "ACCESS_MODE_ALL"
    )
    name, secret = created["apiKey"]["name"], created["secret"]
    assert cli.json("keys", "identify", secret)["name"] == name
    updated = cli.json("keys", "update", name, "--name", "New", "--description", "For CI", "--label", "team=a")
    assert (updated["displayName"], updated["description"], updated["labels"]) == ("New", "For CI", {"team": "a"})
    assert "(ETAG_MISMATCH)" in cli("keys", "disable", name, "--etag", created["apiKey"]["etag"], code=1).err
    assert cli.json("keys", "disable", name)["state"] == "STATE_DISABLED"
    assert cli.json("keys", "enable", name)["state"] == "STATE_ACTIVE"
    assert cli.json("keys", "rotate", name, "--dry-run")["secretWithheld"]
    rotated = cli.json("keys", "rotate", name, "--grace", "1h")
    assert cli("check", secret, "tags", "read", "--product", "heyoo").out.startswith("Allowed")
    assert "KEY_UNKNOWN" in cli("check", secret, "tags", "read", "--product", "bitsy", code=3).out
    for each in (secret, rotated["secret"]):
        assert cli("check", each, "tags", "read").out.startswith("Allowed")
    assert cli.json("keys", "revoke", name, "--reason", "Leaked")["revokeReason"] == "Leaked"
    assert "KEY_REVOKED" in cli("check", "-", "tags", "read", stdin=rotated["secret"], code=3).out


@pytest.mark.slow
def test_the_life_of_a_tenant_and_its_record(cli: Cli) -> None:
    cli("tenants", "create", "heyoo", "record")
    cli("members", "add", "heyoo", "record", "first", "--role", "owner")
    assert "(LAST_OWNER)" in cli("members", "remove", "heyoo", "record", "first", code=1).err
    assert cli.json("members", "update", "heyoo", "record", "first", "--display-name", "First")["role"] == "owner"
    assert cli.json("tenants", "update", "heyoo", "record", "--display-name", "Record")["displayName"] == "Record"
    assert cli.json("tenants", "suspend", "heyoo", "record")["state"] == "STATE_SUSPENDED"
    assert cli.json("tenants", "resume", "heyoo", "record")["state"] == "STATE_ACTIVE"
    assert "Would delete" in cli("tenants", "delete", "heyoo", "record", "--dry-run").out
    assert "(members: 1" not in cli("tenants", "delete", "heyoo", "record").err
    assert cli.json("tenants", "undelete", "heyoo", "record")["state"] == "STATE_ACTIVE"
    actor = "products/heyoo/tenants/record/members/first"
    cli("tenants", "suspend", "heyoo", "record", GATEKEY_ACTOR=actor)
    events = cli.json("audit", "list", "heyoo", "record")["auditEvents"]
    assert [event["verb"] for event in events] == [
        "CreateTenant",
        "AddMember",
        "UpdateMember",
        "UpdateTenant",
        "SuspendTenant",
        "ResumeTenant",
        "DeleteTenant",
        "UndeleteTenant",
        "SuspendTenant",
    ]
    assert events[-1]["actor"] == actor
    verified = cli("audit", "verify", "heyoo", "record").out
    assert verified.startswith("The chain of 9 events is whole. Head: 9:")
    head = verified.split()[-1]
    cli("tenants", "resume", "heyoo", "record")
    assert "10 events" in cli("audit", "verify", "heyoo", "record", "--head", head).out
    # One encoding of hashes: that of the protobuf JSON mapping.
    assert head == f"9:{events[-1]['hash']}"
    assert "10 events" in cli("audit", "verify", "heyoo", "record", "--head", f"9:{b64decode(head[2:]).hex()}").out
    wrong = f"9:{'0' * 64}"
    assert "(CHAIN_BROKEN)" in cli("audit", "verify", "heyoo", "record", "--head", wrong, code=1).err
    assert "(CHAIN_BROKEN)" in cli("audit", "verify", "heyoo", "record", "--head", f"99:{'0' * 64}", code=1).err
    assert "whole" in cli("audit", "verify", "heyoo").out


@pytest.mark.slow
def test_a_key_comes_with_its_machine_user_and_goes_with_it(cli: Cli) -> None:
    created = cli.json(
        *("keys", "create", "heyoo", "acme", "--name", "Bot", "--new-machine-user", "--machine-user-id", "bot"),
        *("--mode", "read-only", "--ttl", "30d"),
    )
    assert created["machineUser"]["name"] == "products/heyoo/tenants/acme/machineUsers/bot"
    assert created["apiKey"]["owner"] == created["machineUser"]["name"]
    assert created["apiKey"]["mode"] == "ACCESS_MODE_READ_ONLY"
    assert created["apiKey"]["expireTime"] > created["apiKey"]["createTime"]
    second = ("keys", "create", "heyoo", "acme", "--name", "2", "--machine-user", "bot", "--mode", "all")
    assert "(MACHINE_USER_HAS_KEY)" in cli(*second, code=1).err
    listed = cli.json("keys", "list", "heyoo", "acme", "--machine-user", "bot")["apiKeys"]
    assert [key["displayName"] for key in listed] == ["Bot"]
    cli("machine-users", "delete", "heyoo", "acme", "bot")
    assert "(MACHINE_USER_NOT_FOUND)" in cli("keys", "list", "heyoo", "acme", "--machine-user", "bot", code=1).err


@pytest.mark.slow
def test_a_key_of_the_tenant_itself(server: Cli, gatekey: Connection) -> None:
    create_tenant(gatekey, "bitsy", "acme")
    create = ("keys", "create", "bitsy", "acme", "--name", "CI", "--grant", "*:read")
    by_default = server.json(*create)["apiKey"]
    named = server.json(*create, "--tenant-key")["apiKey"]
    assert by_default["owner"] == named["owner"] == "products/bitsy/tenants/acme"
    listed = server.json("keys", "list", "bitsy", "acme", "--tenant-key")["apiKeys"]
    assert [key["name"] for key in listed] == [by_default["name"], named["name"]]
    assert "the tenant   restricted   active" in server("keys", "list", "bitsy", "acme").out


def test_a_publishable_key_expires_when_it_is_told_to(server: Cli, gatekey: Connection) -> None:
    create_tenant(gatekey, "codeqr", "acme")
    expires = ("--expires", "2099-01-01T00:00:00Z")
    created = server.json("keys", "create", "codeqr", "acme", "--name", "Site", "--publishable", *expires)
    assert created["secret"].startswith("codeqr_pub_")
    assert created["apiKey"]["kind"] == "KEY_KIND_PUBLISHABLE"
    assert created["apiKey"]["expireTime"] == "2099-01-01T00:00:00Z"
    assert "publishable   active   2099-01-01 00:00:00Z" in server("keys", "list", "codeqr", "acme").out


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--member", "u", "--publishable"), "error: exactly one of"),
        (("--member", "u", "--tenant-key"), "error: exactly one of"),
        (("--member", "u", "--machine-user-id", "x"), "error: --machine-user-id needs --new-machine-user"),
        (("--member", "u", "--grant", "links"), "error: --grant links: RESOURCE:ACTION[,ACTION…] is required"),
        (("--member", "u", "--ttl", "1y"), "error: --ttl 1y: a duration such as"),
        (("--member", "u", "--expires", "soon"), "error: --expires soon: a time such as 2027-01-01T00:00:00Z"),
        (("--member", "u", "--mode", "none"), "error: Invalid value for '--mode': none: one of all, read-only and"),
    ],
)
def test_a_key_that_cannot_be_is_bad_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], problem: str
) -> None:
    code, err = inside(monkeypatch, capsys, "keys", "create", "heyoo", "acme", "--name", "x", *options)
    assert code == 2
    assert err.startswith(problem)


@pytest.mark.slow
def test_lists_go_on_to_their_end(cli: Cli, gatekey: Connection) -> None:
    for number in range(205):
        create_tenant(gatekey, "formbox", f"t{number}")
    ids = [f"t{number}" for number in range(205)]
    listed = cli.json("tenants", "list", "formbox")["tenants"]
    assert [tenant["name"].rpartition("/")[2] for tenant in listed] == ids
    lines = cli("tenants", "list", "formbox").out.splitlines()
    assert [line.split()[0] for line in lines] == ["ID", *ids]


# Checks and tokens


def test_a_check_is_answered_by_exit_codes(cli: Cli, secret: str) -> None:
    assert cli("check", secret, "campaigns/c", "read").out.startswith("Allowed\n")
    denied = cli("check", secret, "campaigns/c", "write", code=3)
    assert denied.out.startswith("Denied: the key needs the permission `write` on `campaigns/c`\n")
    assert "KEY_PERMISSION_MISSING" in denied.out
    assert "TENANT_MISMATCH" in cli("check", secret, "campaigns/c", "read", "--tenant", "other", code=3).out
    assert "KEY_UNKNOWN" in cli("check", "nonsense", "campaigns", "read", code=3).out
    assert "(RESOURCE_INVALID)" in cli("check", secret, "campaigns/*", "read", code=1).err


def test_a_check_as_json_says_what_was_decided(cli: Cli, secret: str) -> None:
    answer = cli("check", secret, "campaigns/c", "write", "--output", "json", code=3).json
    assert answer["allowed"] is False
    assert answer["missingPermissions"] == [{"resource": "campaigns/c", "action": "write"}]
    assert answer["principal"] == "products/heyoo/tenants/acme/members/u_42"


def test_a_key_can_be_read_from_standard_input(cli: Cli, secret: str) -> None:
    assert cli("check", "-", "campaigns/c", "read", stdin=f"{secret}\n").out.startswith("Allowed\n")
    assert "(KEY_REQUIRED)" in cli("check", "-", "campaigns/c", "read", code=1).err


@pytest.mark.slow
def test_a_service_token_does_what_it_was_given_and_no_more(cli: Cli, secret: str) -> None:
    created = cli("tokens", "create", "--name", "edge", "--grant", "products/heyoo/checks:create")
    token = created.out.partition("The service token, shown this once:\n\n    ")[2].strip()
    edge = Cli(cli.cwd, {"GATEKEY_TOKEN": token, "GATEKEY_ADDRESS": endpoint_of(cli.cwd).address})
    assert edge("check", secret, "campaigns/c", "read").out.startswith("Allowed\n")
    assert "(PERMISSION_MISSING)" in edge("tenants", "list", "heyoo", code=1).err


def test_a_token_is_generated_without_a_server(tmp_path: Path) -> None:
    token = Cli(tmp_path)("tokens", "generate").out.strip()
    assert token.startswith("gk_")
    assert is_well_formed(token)


# Finding the server


def test_a_token_goes_only_to_the_address_that_came_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".gatekey").mkdir()
    local.write(local.DEFAULT_PATH, local.LocalConfig("127.0.0.1:1", "gk_file"))
    local.write(Path("other.toml"), local.LocalConfig("127.0.0.1:2", "gk_other"))
    assert find_endpoint({}) == Endpoint("127.0.0.1:1", "gk_file", ".gatekey/client.toml")
    assert find_endpoint({"GATEKEY_CONFIG": "other.toml"}) == Endpoint("127.0.0.1:2", "gk_other", "other.toml")
    by_environment = {"GATEKEY_TOKEN": "gk_env\n", "GATEKEY_CONFIG": "other.toml"}
    assert find_endpoint(by_environment) == Endpoint("127.0.0.1:50051", "gk_env", "GATEKEY_TOKEN")
    by_environment["GATEKEY_ADDRESS"] = "[::1]:3"
    assert find_endpoint(by_environment) == Endpoint("[::1]:3", "gk_env", "GATEKEY_TOKEN")
    with pytest.raises(Failure, match="GATEKEY_TOKEN is missing"):
        find_endpoint({"GATEKEY_ADDRESS": "127.0.0.1:3"})
    with pytest.raises(Failure, match=r"GATEKEY_TOKEN is not set, and none\.toml is not there"):
        find_endpoint({"GATEKEY_CONFIG": "none.toml"})
    for address in ("host", ":1", "host:x", "http://host:1", "host:99999999"):
        with pytest.raises(Failure, match="is not HOST:PORT"):
            find_endpoint({"GATEKEY_TOKEN": "gk_env", "GATEKEY_ADDRESS": address})
    for token in ("a b", "a\nb", "é"):
        with pytest.raises(Failure, match="GATEKEY_TOKEN: what it holds is not a token") as caught:
            find_endpoint({"GATEKEY_TOKEN": token})
        assert token not in str(caught.value)
    assert "gk_file" not in repr(find_endpoint({}))


def test_a_config_file_that_others_can_read_is_not_believed(cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "client.toml"
    config.write_bytes((cli.cwd / ".gatekey" / "client.toml").read_bytes())
    config.chmod(0o600)
    assert "acme" in cli("tenants", "list", "heyoo", GATEKEY_CONFIG=str(config)).out
    config.chmod(0o644)
    refused = cli("tenants", "list", "heyoo", code=1, GATEKEY_CONFIG=str(config))
    assert refused.err == f"error: {config} must belong to you and have mode 0600 (CONFIG_INVALID)\n"


@pytest.mark.slow
def test_who_has_no_server_is_told_how_to_start_one(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    refused = Cli(tmp_path)("products", "list", code=1, GATEKEY_TOKEN="gk_x", GATEKEY_ADDRESS=address)
    assert refused.err.startswith(f"error: no Gatekey responds at {address} (UNAVAILABLE)\n")
    assert "`gatekey serve` starts one" in refused.err
    assert "(TOKEN_MISSING)" in Cli(tmp_path)("products", "list", code=1).err


def test_who_is_not_let_in_is_told_which_token_it_was(cli: Cli) -> None:
    wrong = new_secret("gk_")
    variables = {"GATEKEY_TOKEN": wrong, "GATEKEY_ADDRESS": endpoint_of(cli.cwd).address}
    refused = cli("products", "list", code=1, **variables)
    assert refused.err.splitlines() == [
        "error: the service token is not known (TOKEN_INVALID)",
        f"  the token came from GATEKEY_TOKEN, and went to {variables['GATEKEY_ADDRESS']}",
    ]


def test_an_address_elsewhere_is_warned_of(tmp_path: Path) -> None:
    elsewhere = {"GATEKEY_TOKEN": "gk_x", "GATEKEY_ADDRESS": "gatekey.invalid:50051"}
    refused = Cli(tmp_path)("products", "list", code=1, **elsewhere)
    assert refused.err.startswith(
        "warning: gatekey.invalid:50051 is not this machine, and the connection is not encrypted"
    )


def test_a_silent_server_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with Connection(Endpoint(address, "gk_x", "a test")) as gatekey, pytest.raises(Failure) as caught:
            gatekey.call(methods.GET_TENANT, tenant_service_pb2.GetTenantRequest(), timeout_s=0.2)
        assert caught.value.reason == "DEADLINE_EXCEEDED"

        interrupted = subprocess.Popen(
            [GATEKEY, "products", "list"],
            env=environment(GATEKEY_TOKEN="gk_x", GATEKEY_ADDRESS=address),
            cwd=tmp_path,
            stderr=subprocess.PIPE,
        )
        silent.accept()[0].close()
        connection, _ = silent.accept()
        with connection:
            interrupted.send_signal(signal.SIGINT)
            assert interrupted.communicate(timeout=10)[1] == b""
        assert interrupted.returncode == 130


# The terminal


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), ""),
        (("nope",), "error: No such command 'nope'.\n  `gatekey --help` tells more\n"),
        (("check", "key", "links"), "error: Missing argument"),
        (("keys", "list", "heyoo"), "error: PRODUCT TENANT is required, or the name products/PRODUCT/tenants/TENANT\n"),
        (("keys", "update", "heyoo", "acme", "k"), "error: nothing is to be changed: give at least one of the options"),
        (("members", "update", "heyoo", "acme", "u"), "error: nothing is to be changed: give at least one of --role"),
        (("keys", "get", "heyoo", "a/b", "c"), "error: PRODUCT TENANT KEY is required"),
        (("tenants", "get", "products/heyoo/members/acme"), "error: PRODUCT TENANT is required"),
    ],
)
def test_bad_usage_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], problem: str
) -> None:
    code, err = inside(monkeypatch, capsys, *arguments)
    assert code == 2
    assert err.startswith(problem)
    assert err == "" or err.startswith("error: ")


def test_an_argument_that_is_not_utf8_is_bad_usage(cli: Cli) -> None:
    assert cli("tenants", "get", "heyoo", "\udcff", code=2).err == "error: an argument is not UTF-8\n"


def test_a_secret_in_the_wrong_place_is_not_repeated(tmp_path: Path) -> None:
    key = new_secret("bsy_")
    refused = Cli(tmp_path)("check", "links/abc", "read", "create", key, code=2)
    assert "(bsy_…)" in refused.err
    assert key not in refused.err


def test_a_closed_pipe_is_quiet(cli: Cli) -> None:
    for options in ((), ("--output", "json")):
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "wb") as closed:
            done = subprocess.run(
                [GATEKEY, "products", "list", *options],
                cwd=cli.cwd,
                env=environment(),
                stdout=closed,
                stderr=subprocess.PIPE,
                check=False,
            )
        assert (done.returncode, done.stderr) == (1, b"")


def test_output_that_cannot_be_written_is_a_failure(cli: Cli) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [GATEKEY, "products", "list"],
            cwd=cli.cwd,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"error: output cannot be written: No space left on device\n")


# The demo


def demo_of(served: Served) -> list[str]:
    """The lines that the demo prints, once all are there; the last one is empty."""
    served.wait_for("tly-")
    give_up_at = time.monotonic() + 30
    while served.lines[-1]:
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    return served.lines[1:]


def command(demo: list[str], verdict: str) -> str:
    return demo[demo.index(f"  # {verdict}") + 1].strip()


def paste(cwd: Path, line: str) -> tuple[int, str]:
    """Run a line in a shell in another terminal; answers its exit code and the word it begins with."""
    done = subprocess.run(
        ["sh", "-c", line], cwd=cwd, env=environment(), capture_output=True, text=True, check=False, timeout=30
    )
    return done.returncode, done.stdout.split()[0].strip(":") if done.stdout else done.stderr


def stored_keys(cwd: Path) -> dict[str, str]:
    path = cwd / ".gatekey" / "demo-keys.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return local.read_private(path) or {}


@pytest.mark.slow
def test_the_demo_can_be_pasted_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gatekey").symlink_to(GATEKEY)
    with Served(tmp_path, "--demo", EXAMPLES, program="bin/gatekey") as served:
        first = demo_of(served)
        keys = stored_keys(tmp_path)
        assert sorted(keys) == list(PRODUCTS)
        assert command(first, "allowed") == f"bin/gatekey check {keys['bitsy']} links/abc read"
        assert paste(tmp_path, command(first, "allowed")) == (0, "Allowed")
        assert paste(tmp_path, command(first, "denied")) == (3, "Denied")
        with Connection(endpoint_of(tmp_path)) as gatekey:
            for product, key in keys.items():
                (line,) = [number for number, text in enumerate(first) if text.split() == [product, key]]
                for verdict, text in zip(("allowed", "denied"), first[line + 1 : line + 3], strict=True):
                    shown, resource, action, *tenant = text.replace("--tenant ", "").split()
                    request = check_service_pb2.CheckRequest(key=key, resource=resource, action=action)
                    if tenant:
                        request.tenant = tenant[0]
                    assert shown == verdict
                    assert gatekey.call(methods.CHECK, request).allowed == (verdict == "allowed")
        changed = tmp_path / "bitsy.yaml"
        changed.write_text((EXAMPLES / "bitsy.yaml").read_text().replace("Digi notes", "Notes"))
        Cli(tmp_path)("products", "apply", changed)

    # As if the last start had been cut short when one key was made and not yet stored.
    lost = keys.pop("heyoo")
    path = tmp_path / ".gatekey" / "demo-keys.toml"
    local.write_private(path, "".join(line for line in path.read_text().splitlines(True) if lost not in line))
    with Served(tmp_path, "--demo", EXAMPLES, program="bin/gatekey") as served:
        second = demo_of(served)
        new = stored_keys(tmp_path)["heyoo"]
        assert [line.replace(new, lost) for line in second] == first
        assert stored_keys(tmp_path) == {**keys, "heyoo": new}
        assert "displayName: Notes" in Cli(tmp_path)("products", "get", "bitsy", "-o", "yaml").out


@pytest.mark.slow
def test_a_demo_that_was_cut_short_or_cannot_be_had_does_not_stop_the_server(tmp_path: Path) -> None:
    examples = tmp_path / "specs"
    shutil.copytree(EXAMPLES, examples)
    (examples / "broken.yaml").write_text("product: broken\ncolour: red\n")
    data = ("--data-dir", "elsewhere", "--demo", "specs")
    with Served(tmp_path, *data) as served:
        assert served.address

    with Served(tmp_path, *data) as served:
        demo = demo_of(served)
        assert command(demo, "allowed").startswith(f"GATEKEY_CONFIG=elsewhere/client.toml {GATEKEY} check bsy_")
        assert paste(tmp_path, command(demo, "allowed")) == (0, "Allowed")
        assert "spec.colour: line 2: there is no such field (FIELD_UNKNOWN)" in served.log.read_text()
