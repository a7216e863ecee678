"""The command line as a process, and `gatekey serve` in a directory, as people start them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
from gatekey import _methods as methods
from gatekey.cli import app
from gatekey.cli.calls import Connection
from gatekey.cli.connection import Endpoint, find_endpoint
from gatekey.v1 import member_service_pb2, tenant_service_pb2

GATEKEY = Path(sys.executable).with_name("gatekey")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PRODUCTS = ("bitsy", "codeqr", "formbox", "heyoo", "tally")

INDEPENDENT = """
product: probe
collections: [{pattern: things, actions: [read, write]}]
readActions: [read]
roles: [{role: owner, owner: true, grants: [{resource: "*", actions: ["*"]}]}, {role: guest}]
secretKeys: {prefix: prb_, modes: [ACCESS_MODE_ALL], defaultMode: ACCESS_MODE_ALL, maxLifetime: 3600s}
machineUsers: {role: owner, lifetime: LIFETIME_INDEPENDENT}
credential: {header: x-key}
"""


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without its own Gatekey, program and variables, and with the given ones."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GATEKEY_")}
    path = [directory for directory in inherited["PATH"].split(":") if directory != str(GATEKEY.parent)]
    return {**inherited, "PATH": ":".join(path), **variables}


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Cli:
    """The program, run in a directory."""

    cwd: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: object, code: int = 0, stdin: str = "", **variables: str) -> Result:
        done = subprocess.run(
            [GATEKEY, *map(str, arguments)],
            cwd=self.cwd,
            env=environment(**self.variables, **variables),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert "Traceback" not in done.stderr
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        assert (done.stderr == "") == (code in (0, 3)), done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    def json(self, *arguments: object) -> Any:
        return self(*arguments, "--output", "json").json


class Served:
    """`gatekey serve` in a directory, until the end of a `with`; what it prints is kept, line by line."""

    def __init__(self, cwd: Path, *arguments: object, program: str = str(GATEKEY)) -> None:
        self.log = cwd / "server.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [program, "serve", "--listen", "127.0.0.1:0", *map(str, arguments)],
                cwd=cwd,
                env=environment(GATEKEY_LOG_FORMAT="json", GATEKEY_SHUTDOWN_GRACE_S="1"),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        code = self.stop()
        assert kind is not None or code == 0

    def wait_for(self, text: str) -> str:
        """Wait for a line that holds the text."""
        give_up_at = time.monotonic() + 30
        while time.monotonic() < give_up_at and (self._reader.is_alive() or any(text in x for x in self.lines)):
            found = next((line for line in self.lines if text in line), None)
            if found is not None:
                return found
            time.sleep(0.01)
        pytest.fail(f"no {text!r} in {self.lines}; {self.log.read_text()}")

    @property
    def address(self) -> str:
        return self.wait_for("Gatekey serves on").split()[-1]

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))


def endpoint_of(cwd: Path) -> Endpoint:
    return find_endpoint({"GATEKEY_CONFIG": str(cwd / ".gatekey" / "client.toml")})


def create_tenant(gatekey: Connection, product: str, tenant: str) -> str:
    request = tenant_service_pb2.CreateTenantRequest(parent=f"products/{product}", tenant_id=tenant)
    return gatekey.call(methods.CREATE_TENANT, request).name


def add_member(gatekey: Connection, tenant: str, member: str, role: str) -> None:
    added = member_service_pb2.Member(role=role)
    request = member_service_pb2.AddMemberRequest(parent=tenant, member_id=member, member=added)
    gatekey.call(methods.ADD_MEMBER, request)


def inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run the program in this process, which is quicker; answers its exit code and its standard error."""
    monkeypatch.setattr(sys, "argv", ["gatekey", *arguments])
    code = app.run()
    return code, capsys.readouterr().err
