"""`gatekey audit`: chains that are verified all at once or from a file, and events of a while."""

import json
import select
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from gatekey.cli.calls import Connection

from tests.support.cli import GATEKEY, Cli, add_member, create_tenant, environment

pytestmark = pytest.mark.slow


def test_audit_chains_are_verified_all_at_once_and_offline(cli: Cli, tmp_path: Path) -> None:
    cli("tenants", "create", "heyoo", "ledger")
    cli("members", "add", "heyoo", "ledger", "first", "--role", "owner")
    cli("tenants", "create", "heyoo", "dropped")
    cli("tenants", "delete", "heyoo", "dropped")
    (mine,) = json.loads(cli("audit", "verify", "heyoo", "ledger", "-o", "json").out)["chains"]
    events = cli.json("audit", "list", "heyoo", "ledger")["auditEvents"]
    assert mine == {
        "parent": "products/heyoo/tenants/ledger",
        "whole": True,
        "problem": "",
        "head": {"sequence": 2, "hash": events[-1]["hash"]},
    }
    of_product = json.loads(cli("audit", "verify", "heyoo", "--all", "-o", "json").out)["chains"]
    of_all = json.loads(cli("audit", "verify", "--all", "-o", "json").out)["chains"]
    names = {chain["parent"] for chain in of_product}
    assert {"products/heyoo", "products/heyoo/tenants/ledger", "products/heyoo/tenants/dropped"} <= names
    assert names < {chain["parent"] for chain in of_all}
    assert all(chain["whole"] for chain in of_all)
    assert mine in of_product

    export = tmp_path / "export.json"
    nowhere = {"GATEKEY_ADDRESS": "127.0.0.1:1", "GATEKEY_TOKEN": "none"}
    head = f"2:{events[-1]['hash']}"

    def verify(found: list[Any], *options: str, code: int = 0) -> tuple[str, str]:
        export.write_text(json.dumps({"auditEvents": found, "nextPageToken": ""}))
        done = cli("audit", "verify", "--file", str(export), *options, code=code, **nowhere)
        return done.out, done.err

    assert f"Head: {head}" in verify(events)[0]
    assert "whole" in verify(events, "--head", head)[0]
    other = cli.json("audit", "list", "heyoo")["auditEvents"]
    assert "products/heyoo of" in verify([*other, *events])[0]
    for broken in (
        [{**events[0], "verb": "DeleteTenant"}, events[1]],
        [events[0], {**events[1], "callerDisplayName": "somebody"}],
        [events[0], {**events[1], "after": {**events[1]["after"], "role": "member"}}],
        events[1:],
        [events[1], events[0]],
        [events[0], events[0], events[1]],
    ):
        assert "(CHAIN_BROKEN)" in verify(broken, code=1)[1]
    assert "(CHAIN_BROKEN)" in verify(events[:1], "--head", head, code=1)[1]
    export.write_text("{}")
    assert "auditEvents" in cli("audit", "verify", "--file", str(export), code=1, **nowhere).err
    cli("audit", "verify", "heyoo", "--file", str(export), code=2)
    cli("audit", "verify", "heyoo", "--all", "--head", head, code=2)
    cli("audit", "verify", code=2)


def test_keys_tell_who_made_them_and_whose_a_past_secret_was(cli: Cli) -> None:
    cli("tenants", "create", "heyoo", "traced")
    cli("members", "add", "heyoo", "traced", "ann", "--role", "owner")
    create = ("keys", "create", "heyoo", "traced", "--name", "CI", "--member", "ann", "--mode", "all", "-o", "json")
    secret = cli(*create, GATEKEY_ACTOR="products/heyoo/tenants/traced/members/ann").json["secret"]
    other = cli(*create).json["apiKey"]
    made = [line.split() for line in cli("keys", "list", "heyoo", "traced").out.splitlines()]
    assert made[0][-3:-1] == ["Created", "by"]
    assert "members/ann" in made[1][-1]
    assert "(key_" in made[2][-1]
    shown = cli("keys", "identify", "-", stdin=secret).out
    assert "members/ann, through " in shown
    assert "This secret" not in shown
    name = shown.split()[1]
    cli("keys", "rotate", name)
    assert "stopped working" in cli("keys", "identify", "-", stdin=secret).out
    cli("keys", "delete", name)
    gone = cli("keys", "identify", "-", stdin=secret).out
    assert name in gone
    assert "deleted" in gone
    assert "Display name   CI" in gone
    assert "members/ann" in gone
    assert "stopped working" in gone
    assert other["creator"]["caller"].startswith("products/gatekey/tenants/system/apiKeys/key_")


def test_audit_events_are_listed_since_a_time_or_for_a_while(cli: Cli) -> None:
    cli("tenants", "create", "heyoo", "recent")
    assert len(cli.json("audit", "list", "heyoo", "recent", "--since", "1h")["auditEvents"]) == 1
    assert cli.json("audit", "list", "heyoo", "recent", "--until", "7d")["auditEvents"] == []
    assert len(cli.json("audit", "list", "heyoo", "recent", "--since", "2020-01-01T00:00:00Z")["auditEvents"]) == 1
    assert len(cli.json("audit", "list", "heyoo", "recent", "--since", "2020-01-01")["auditEvents"]) == 1
    assert "7d" in cli("audit", "list", "heyoo", "recent", "--since", "yesterday", code=2).err
    token = cli.json("keys", "list", "gatekey", "system")["apiKeys"][0]
    assert f"{token['displayName']} (key_" in cli("audit", "list", "heyoo", "recent").out


def test_events_come_as_lines_of_json(cli: Cli, cli_connection: Connection) -> None:
    tenant = create_tenant(cli_connection, "heyoo", "tailed")
    process = subprocess.Popen(
        [GATEKEY, "audit", "tail", "heyoo", "tailed", "--json"],
        cwd=cli.cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        for number in range(100):
            add_member(cli_connection, tenant, f"m{number}", "member")
            if select.select([process.stdout], [], [], 0.3)[0]:
                break
        event = json.loads(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert (event["verb"], process.returncode, error) == ("AddMember", 130, "")


def test_json_can_be_asked_for_by_its_name(cli: Cli) -> None:
    asked = cli("products", "list", "--json")
    assert asked.json["products"]
    assert asked.out == cli("products", "list", "--output", "json").out
    # What comes after `--` is no option.
    assert "the name: not of the form" in cli("products", "get", "--", "--json", code=1).err


def test_the_chain_of_a_deleted_product_is_verified_with_all_others(cli: Cli, tmp_path: Path) -> None:
    spec = tmp_path / "gone.yaml"
    text = cli("products", "get", "tally", "-o", "yaml").out
    spec.write_text(text.replace("product: tally", "product: goner").replace("tly-", "goner-"))
    cli("products", "apply", str(spec))
    cli("tenants", "create", "goner", "acme")
    cli("products", "delete", "goner", "--force")
    for arguments in (("goner", "--all"), ("--all",)):
        chains = cli("audit", "verify", *arguments, "-o", "json").json["chains"]
        found = {each["parent"]: each for each in chains}
        assert {"products/goner", "products/goner/tenants/acme"} <= found.keys()
        assert all(each["whole"] for each in found.values())


def test_a_token_that_must_name_an_actor_says_so(cli: Cli) -> None:
    create = ("tokens", "create", "--name", "On behalf", "--grant", "products/heyoo:*", "-o", "json")
    assert cli(*create, "--actor-required").json["apiKey"]["actorRequired"]
    assert not cli(*create).json["apiKey"]["actorRequired"]
    listed = [line for line in cli("tokens", "list").out.splitlines() if "On behalf" in line]
    assert [("names an actor" in line) for line in listed] == [True, False]
