"""`--dry-run`: every command that changes something has it, and then changes nothing."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from gatekey import _methods as methods
from gatekey.cli import app
from gatekey.cli.calls import Connection
from gatekey.v1 import (
    api_key_service_pb2,
    audit_service_pb2,
    member_service_pb2,
    product_service_pb2,
    tenant_service_pb2,
)
from google.protobuf.message import Message

from tests.support.cli import INDEPENDENT, Served, endpoint_of

# What changes nothing of the data that the API manages.
READING = {
    "audit list",
    "audit tail",
    "audit verify",
    "check",
    "keys get",
    "keys identify",
    "keys list",
    "machine-users get",
    "machine-users list",
    "members get",
    "members list",
    "migrate",
    "peppers generate",
    "products get",
    "products list",
    "serve",
    "tenants get",
    "tenants list",
    "tokens generate",
    "tokens list",
}
# A story in which every command changes something.
STORY = """
products apply probe.yaml
tenants create probe acme --display-name Acme
tenants update probe acme --display-name New
tenants suspend probe acme
tenants resume probe acme
tenants delete probe acme
tenants undelete probe acme
members add probe acme u_42 --role owner
members update probe acme u_42 --display-name New
machine-users create probe acme bot
machine-users update probe acme bot --display-name New
keys create probe acme --name CI --member u_42
keys update KEY --name New
keys disable KEY
keys enable KEY
keys rotate KEY
keys revoke KEY --reason Leaked
keys delete KEY
machine-users delete probe acme bot
members remove probe acme u_42 --force
tokens create --name edge --grant products/probe/checks:create
tokens rotate KEY
tokens delete KEY
products delete probe --force
""".strip().splitlines()


def commands(group: Any, *path: str) -> Iterator[tuple[str, Any]]:
    """All commands of the program, by the words that they are called with."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *path, name)
        else:
            yield " ".join((*path, name)), command


def test_every_command_that_changes_something_has_the_option() -> None:
    found = dict(commands(typer.main.get_command(app.app)))
    options = {name: {option for p in command.params for option in p.opts} for name, command in found.items()}
    told = {name for name in found if any(line.startswith(f"{name} ") for line in STORY)}
    assert found.keys() - READING == told
    assert {name for name in found if "--dry-run" in options[name]} == told


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, where a server of its own has its data and a spec lies."""
    for name in [name for name in os.environ if name.startswith("GATEKEY_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "probe.yaml").write_text(INDEPENDENT)
    with Served(tmp_path) as served:
        assert served.address
        yield tmp_path


def everything(gatekey: Connection) -> list[Message]:
    """Whatever there is: products, tenants, people, keys and events."""
    products = gatekey.call(methods.LIST_PRODUCTS, product_service_pb2.ListProductsRequest())
    state: list[Message] = [products]
    for product in products.products:
        request = tenant_service_pb2.ListTenantsRequest(parent=product.name, show_deleted=True)
        tenants = gatekey.call(methods.LIST_TENANTS, request)
        parents = [product.name, *(tenant.name for tenant in tenants.tenants)]
        state.append(tenants)
        for name in parents[1:]:
            people = member_service_pb2.ListPeopleRequest(parent=name)
            state.append(gatekey.call(methods.LIST_PEOPLE, people))
            keys = gatekey.call(methods.LIST_API_KEYS, api_key_service_pb2.ListApiKeysRequest(parent=name))
            for key in keys.api_keys:
                key.ClearField("last_use_time")
            state.append(keys)
        for name in parents:
            events = audit_service_pb2.ListAuditEventsRequest(parent=name)
            log = gatekey.call(methods.LIST_AUDIT_EVENTS, events)
            for event in log.audit_events:
                # Written a moment later.
                event.ClearField("receipt_wait")
            state.append(log)
    return state


@pytest.mark.slow
def test_a_dry_run_changes_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(line: str) -> str:
        monkeypatch.setattr(sys, "argv", ["gatekey", *line.split()])
        code = app.run()
        out, err = capsys.readouterr()
        assert (code, err) == (0, ""), line
        return out

    key = ""
    with Connection(endpoint_of(directory)) as gatekey:
        before = everything(gatekey)
        for line in STORY:
            line = line.replace("KEY", key)
            out = run(f"{line} --dry-run")
            assert out.startswith(("Dry run: nothing was changed. This is what it would be:\n", "Would delete ")), line
            assert "shown this once" not in out
            assert everything(gatekey) == before, line

            out = run(line)
            assert not out.startswith(("Dry run", "Would"))
            key = (
                "".join(re.findall(r"products/(?:probe/tenants/acme|gatekey/tenants/system)/apiKeys/\S+", out)[:1])
                or key
            )
            after = everything(gatekey)
            assert after != before, line
            before = after
