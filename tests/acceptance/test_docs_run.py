"""Every command and block of code on the pages is run as it stands, and what it prints is compared.

One server is started as README says, in a directory that looks like a fresh checkout. Each page's blocks run in order,
in one shell. A block that cannot be run says so on its page, in a comment before it: `<!-- not run: why -->`.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from gatekey.cli import specs
from gatekey.cli.problems import Failure

from tests.support.cli import environment
from tests.support.databases import Databases
from tests.support.pages import Block, Shell, commands, is_as_printed, read_blocks
from tests.support.server import ROOT

README = ROOT / "README.md"
PAGES = sorted(
    [
        README,
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "clients").glob("*/README.md"),
        *(ROOT / "examples").glob("*/README.md"),
    ],
    # The other pages go on with what README has made, first those that show it.
    key=lambda page: (page != README, page.parent != ROOT / "docs", page),
)

# What else runs a block, by its page and its first line.
ELSEWHERE = {
    ("clients/go/README.md", "go mod edit"): "tests/clients/test_go.py",
    ("clients/typescript/README.md", "cd /path/to/gatekey"): "tests/clients/test_typescript.py",
    ("clients/typescript/README.md", "npm install"): "tests/clients/test_typescript.py",
    ("clients/typescript/README.md", "export GATEKEY_TOKEN="): "tests/clients/test_typescript.py",
    ("clients/typescript/README.md", "true ALLOWED"): "tests/clients/test_typescript.py",
}

# What is run instead of what is written, because the server of the tests has another port and their environment is
# there already. {address} and {port} are the server's; {free} is a free port. All of it must occur on its page.
INSTEAD: Mapping[str, Mapping[str, str]] = {
    "README.md": {"make run ": ": ", "make test ": ": "},
    "clients/go/README.md": {"127.0.0.1:50051": "{address}"},
    "clients/python/README.md": {
        "pip install": ":",
        '"gatekey.example:443", token="gk_…", tls=gatekey.TLS()': "",
        "/run/secrets/gatekey": "token",
        # README has made that one.
        'tenants.create("acme")': 'tenants.create("shop")',
        'acme = client.tenant("heyoo", "acme")': 'acme = client.tenant("heyoo", "shop")',
    },
    "docs/audit.md": {"gatekey audit tail heyoo acme ": "timeout 2 gatekey audit tail heyoo acme || test $? = 124 "},
    "docs/tls.md": {
        "0.0.0.0:50051 gatekey serve": "localhost:{free} gatekey serve &"
        " until grep -qs token tls/client.toml; do sleep 0.1; done",
        "localhost:50051": "localhost:{free}",
    },
    "examples/service/README.md": {
        "make run ": ": ",
        ".venv/bin/pip install": ":",
        ".venv/bin/uvicorn": "GATEKEY_ADDRESS={address} .venv/bin/uvicorn --port {free} --log-level warning",
        "app:app": "app:app & until curl -s localhost:{free} >&2; do sleep 0.1; done 2>/dev/null",
        "localhost:8000": "localhost:{free}",
    },
}

VARIABLES: Mapping[str, Mapping[str, str]] = {"docs/tls.md": {"GATEKEY_DATA_DIR": "tls"}}

# What the text around a page's Python takes for granted.
GIVEN = {
    "clients/python/README.md": """
import grpc
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI
from gatekey.cli import specs
from gatekey.cli.problems import Failure

import gatekey

link_id = "spring"
spec = specs.read_spec(Path("examples/heyoo.yaml"))
client = gatekey.Client()
made = client.tenant("heyoo", "acme").keys.create("Page", member="u_42", grants={"campaigns": ["read"]})
key, name = made.secret, made.api_key.name
""",
}
# Before each block of Python: one may have closed its client.
ANEW = {"clients/python/README.md": "client = gatekey.Client()"}


# A page may await at the top level.
PYTHON = """
import ast, asyncio, inspect
async def main():
    made = eval(compile({program!r}, "page", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), globals())
    if inspect.iscoroutine(made):
        await made
asyncio.run(main())
"""


@dataclass
class Checkout:
    """A directory that looks like a fresh checkout, with a server that was started in it by `make run`."""

    path: Path
    address: str
    printed: str
    pages: set[str]
    """Those that were run here."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    path = tmp_path_factory.mktemp("checkout")
    for entry in ROOT.iterdir():
        if entry.name not in {".git", ".gatekey"}:
            (path / entry.name).symlink_to(entry)
    # The environment is that of the tests, which `make` would else look after; with one of them, it is elsewhere.
    if not (path / ".venv").exists():
        (path / ".venv").symlink_to(sys.prefix)
    with (path / "make.log").open("wb") as log:
        make = subprocess.Popen(
            ["make", "--silent", "--old-file=.venv/.run", "run"],
            cwd=path,
            env=environment(GATEKEY_LISTEN="127.0.0.1:0", PYTHONUNBUFFERED="1"),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        gives_up_at = time.monotonic() + 60
        while "tly-" not in (printed := (path / "make.log").read_text()):
            assert make.poll() is None, printed
            assert time.monotonic() < gives_up_at, printed
            time.sleep(0.05)
        address = re.search(r"Gatekey serves on (\S+)", printed)
        assert address is not None
        yield Checkout(path, address[1], printed, set())
    finally:
        # As Ctrl-C does: to make and to the server.
        os.killpg(make.pid, signal.SIGINT)
        make.wait(30)


@pytest.mark.parametrize(
    "page",
    [README, *(pytest.param(page, marks=pytest.mark.slow) for page in PAGES if page != README)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_what_is_on_a_page_works(page: Path, checkout: Checkout) -> None:
    if page.parent.name == "go":
        if shutil.which("go") is None:
            pytest.skip("go is not installed: the page of the Go client is not run")
        # Or else the first run on a machine prints what it downloads.
        subprocess.run(["go", "mod", "download"], cwd=ROOT / "clients" / "go", check=True, timeout=600)
    blocks = list(read_blocks(page))
    needs_readme = any(block.language in ("sh", "console", "python") for block in blocks)
    for each in dict.fromkeys((README, page) if needs_readme else (page,)):
        name = str(each.relative_to(ROOT))
        if name not in checkout.pages:
            checkout.pages.add(name)
            Run(name, list(read_blocks(each)), checkout).all()


FAULTY = {
    "no language": "```\nls\n```",
    "another language": "```ruby\n1\n```",
    "a command that fails": "```sh\nfalse\ntrue\n```",
    "another output": "```console\n$ echo one\ntwo\n```",
    "less output": "```console\n$ echo one; echo two\none\n```",
    "output of a script": "```sh\necho one\n```\n\n```text\ntwo\n```",
    "JSON": "```json\n{\n```",
    "TOML": "```toml\na\n```",
    "YAML without a name": "```yaml\nproduct: x\n```",
    "a spec": "Save it as `x.yaml`:\n\n```yaml\ncolour: red\n```",
    "Python": "```python\nraise ValueError\n```",
    "a saved program": "Save it as `x.py`:\n\n```python\nprint(1)\n```\n\n```console\n$ python3 x.py\n2\n```",
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_page_is_found(fault: str, tmp_path: Path) -> None:
    (tmp_path / ".gatekey").mkdir()
    (tmp_path / ".gatekey" / "client.toml").write_text('address = "127.0.0.1:1"\ntoken = "gk_x"\n')
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n{FAULTY[fault]}\n")
    checkout = Checkout(tmp_path, "127.0.0.1:1", "", set())
    with pytest.raises((AssertionError, Failure, ValueError, pytest.fail.Exception)):
        Run("page.md", list(read_blocks(page)), checkout).all()
    page.write_text(f"# A page\n\n<!-- not run: a test -->\n{FAULTY[fault].rpartition(chr(10) * 2)[2]}\n")
    Run("page.md", list(read_blocks(page)), checkout).all()


def test_what_varies_is_not_compared() -> None:
    assert is_as_printed("Key   hey_…\n…\nEnd", "Key      hey_abc\none\ntwo\nEnd\n")
    assert is_as_printed("…", "anything\nat all")
    assert not is_as_printed("Key   hey_…\nEnd", "Key   hey_abc\none\nEnd\n")
    assert not is_as_printed("a b", "a  b")


class Run:
    """One page's blocks, in order."""

    def __init__(self, page: str, blocks: list[Block], checkout: Checkout) -> None:
        self.page = page
        self.blocks = blocks
        self.checkout = checkout
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        values = {"address": checkout.address, "port": checkout.address.rpartition(":")[2], "free": str(port)}
        self.instead = {
            old: re.sub(r"\{(address|port|free)\}", lambda match: values[match[1]], new)
            for old, new in INSTEAD.get(page, {}).items()
        }
        self.unused = set(self.instead)
        variables = VARIABLES.get(page, {})
        path = f"{checkout.path / '.venv' / 'bin'}:{environment()['PATH']}"
        self.data_dir = checkout.path / variables.get("GATEKEY_DATA_DIR", ".gatekey")
        self.shell = Shell(checkout.path, environment(**variables) | {"PATH": path})
        self.shell.output = checkout.printed
        self.python: list[str] = []
        self.printed = ""

    def all(self) -> None:
        with self.shell:
            for block in self.blocks:
                if block.not_run is None and not self.is_run_elsewhere(block):
                    self.one(block)
            self.run_python()
        assert not self.unused, "what is run instead is not on the page"

    def is_run_elsewhere(self, block: Block) -> bool:
        file = next(
            (f for (page, first), f in ELSEWHERE.items() if page == self.page and block.code.startswith(first)), ""
        )
        return bool(file) and (ROOT / file).exists()

    def one(self, block: Block) -> None:
        where = f"{self.page}, line {block.line}"
        if block.saved_as is not None:
            (self.checkout.path / block.saved_as).write_text(block.code)
        match block.language:
            case "sh":
                self.printed = self.ok(block.code, where)
            case "console":
                for command, expected in commands(block.code):
                    _, printed = self.shell.run(self.filled(command))
                    assert is_as_printed(expected, printed), f"{where}: {command}\n{printed}"
            case "text":
                assert is_as_printed(block.code, self.printed), f"{where}: it prints\n{self.printed}"
            case "python" if block.saved_as is None:
                self.python.append(self.filled(block.code))
            case "python":
                pass  # The page says how to run it.
            case "yaml":
                assert block.saved_as is not None, f"{where}: under which name is it to be saved?"
                specs.read_spec(self.checkout.path / block.saved_as)
            case "json":
                json.loads(block.code)
            case "toml":
                tomllib.loads(block.code)
            case "go" | "ts" | "sql":
                pass  # Tests of their own below, and in tests/unit/test_docs.py.
            case _:
                pytest.fail(f"{where}: what is to be done with a block of {block.language or 'no language'}?")

    def ok(self, script: str, where: str) -> str:
        """Run lines that must all succeed."""
        printed = ""
        for command in re.split(r"(?<!\\)\n(?!\s)", re.sub(r"(?<!\\)\n(?=\s*\|)", " ", script.strip())):
            if command.startswith("#") or not command:
                continue
            code, text = self.shell.run(self.filled(command))
            assert code == 0, f"{where}: {command}\n{text}"
            printed += text
        return printed

    def filled(self, code: str) -> str:
        """The code with what is to be run instead, and with the reader's own for what ends in `…`."""
        for old, new in self.instead.items():
            if old in code:
                self.unused.discard(old)
                code = code.replace(old, new)
        return re.sub(r"\b([\w-]+[_:])(?:\w*)…", lambda match: self.newest(match[1]) or match[0], code)

    def newest(self, beginning: str) -> str | None:
        """What was printed last that begins so: a secret, a key's id, the head of a chain."""
        # Of keys, those that something was done with; their makers are named as well.
        within = "/apiKeys/" if beginning == "key_" else r"\b"
        found = re.findall(rf"{within}({re.escape(beginning)}[\w=+/-]{{20,}})", self.shell.output)
        if not found and beginning == "gk_":
            return str(tomllib.loads((self.data_dir / "client.toml").read_text())["token"])
        return found[-1] if found else None

    def run_python(self) -> None:
        """Run the page's Python as one program, in a directory of the checkout, with a token that may do everything."""
        if not self.python:
            return
        client = tomllib.loads((self.data_dir / "client.toml").read_text())
        (self.checkout.path / "token").write_text(client["token"] + "\n")
        blocks = (f"{ANEW.get(self.page, '')}\n{block}" for block in self.python)
        program = "\n".join([GIVEN.get(self.page, ""), *blocks])
        code = PYTHON.format(program=program)
        done = subprocess.run(
            [sys.executable, "-W", "error::SyntaxWarning", "-c", code],
            cwd=self.checkout.path,
            env=environment(GATEKEY_ADDRESS=client["address"], GATEKEY_TOKEN=client["token"]),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{self.page}: {program}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
async def test_the_sql_on_a_page_works(page: Path, databases: Databases) -> None:
    queries = (ROOT / "server" / "gatekey_server" / "store" / "queries").glob("*.sql")
    known = "\n".join(file.read_text() for file in queries)
    for block in read_blocks(page):
        if block.language != "sql" or block.not_run is not None or block.code in known:
            continue
        # Databases and roles are the whole cluster's, which is other tests' as well.
        code = re.sub(r"\bgatekey(?=\b|_)", "page_gatekey", block.code)
        connection = await asyncpg.connect(await databases.create())
        try:
            # Each by itself: `create database` cannot be in a transaction.
            for statement in filter(str.strip, code.split(";\n")):
                await connection.execute(statement)
        finally:
            for kind, name in re.findall(r"create (database|role) (\w+)", code)[::-1]:
                await connection.execute(f"drop {kind} if exists {name}")
            await connection.close()


def test_every_block_that_is_not_run_says_why() -> None:
    reasons = {
        (str(page.relative_to(ROOT)), block.line): block.not_run
        for page in PAGES
        for block in read_blocks(page)
        if block.not_run is not None
    }
    for (page, line), reason in reasons.items():
        print(f"not run: {page}:{line}: {reason}")  # noqa: T201
        assert len(reason) > len("needs"), (page, line)
    # What could be run and is not would show here.
    assert len(reasons) <= 12
    assert shutil.which("curl"), "curl is needed"
