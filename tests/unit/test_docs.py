"""The documents say what the code does: every reason, RPC, variable and limit is there, and nothing that is gone."""

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import pytest
from gatekey.core import errors, specs
from gatekey.core.decisions import Reason
from gatekey.v1 import product_spec_pb2
from gatekey.wire.specs import read_spec
from gatekey_server.rpc.errors import status_code
from gatekey_server.runtime import config, variables
from google.protobuf import json_format
from ruamel.yaml import YAML

from tests.acceptance.test_callers import RULES
from tests.support.programs import blocks
from tests.support.server import ROOT

SERVER, CLIENT = ROOT / "server" / "gatekey_server", ROOT / "clients" / "python" / "gatekey"
CLIENT_PAGES = sorted((ROOT / "clients").glob("*/README.md"))
DOCUMENTS = sorted(
    [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *CLIENT_PAGES,
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]
)

# What the server is made of; its client shares a part of that.
SOURCES = sorted(path for place in (SERVER, CLIENT / "core", CLIENT / "wire") for path in place.rglob("*.py"))
REASON = re.compile(r"[A-Z]+(?:_[A-Z]+)*")
LIMIT = re.compile(r"_?(?:MAX|MIN)_.*|.*_(?:S|MAX|ROWS|ATTEMPTS|PAGE_SIZE)")
NO_LIMITS = {"_POLL_S", "WAIT_BUCKETS_S"}


def rows(document: str) -> Iterator[list[str]]:
    """The cells of every row of every table, without the marks around code."""
    for line in (ROOT / "docs" / document).read_text().splitlines():
        if line.startswith("|") and not line.startswith("|-"):
            yield [cell.strip().replace("`", "") for cell in line.strip("|").split(" | ")]


# ---------------------------------------------------------------- reasons of errors


def reasons() -> Mapping[str, set[str]]:
    """The status codes of every reason that the server's code names."""
    classes = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            at_field = isinstance(node.func, ast.Attribute) and node.func.attr == "at"
            named = node.func.value if isinstance(node.func, ast.Attribute) else node.func
            error = classes.get(named.id) if isinstance(named, ast.Name) else None
            is_violation = error is errors.Violation
            if error is None or not (is_violation or issubclass(error, errors.DomainError)):
                continue
            reason = node.args[1 if at_field or is_violation else 0]
            # Elsewhere an error is handed on, and its reason with it.
            if isinstance(reason, ast.Constant) and isinstance(reason.value, str):
                error = errors.InvalidRequest if is_violation else error
                found[reason.value].add(status_code(error(reason.value, "")).name)
    return found


def test_every_reason_is_documented_with_its_code() -> None:
    documented = {row[0]: {row[1]} for row in rows("api.md") if len(row) == 3 and REASON.fullmatch(row[0])}
    assert documented == reasons()


def test_the_reasons_of_decisions_are_documented_in_their_order() -> None:
    known = Reason.__members__
    documented = [row[1] for row in rows("permission-model.md") if row[0].isdigit()]
    assert documented == [*(name for name in known if name != "ALLOWED"), "ALLOWED"]


# ---------------------------------------------------------------- RPCs


def test_what_every_rpc_needs_is_documented() -> None:
    documented = {row[0]: (row[1], row[2]) for row in rows("security-model.md") if row[0] in RULES}
    assert documented == {name: (_template(rule.resource), rule.action) for name, rule in RULES.items()}


def _template(resource: str) -> str:
    """`products/heyoo/tenants/acme` as `products/{product}/tenants/{tenant}`."""
    ids = {
        "products": "product",
        "tenants": "tenant",
        "members": "member",
        "machineUsers": "machine_user",
        "apiKeys": "api_key",
    }
    collections = resource.split("/")[::2]
    has_id = len(resource.split("/")) % 2 == 0
    parts = [f"{name}/{{{ids[name]}}}" for name in (collections if has_id else collections[:-1])]
    return "/".join(parts if has_id else [*parts, collections[-1]])


def test_every_rpc_is_among_the_methods() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    missing = [name for name in RULES if f"`{name.split('.')[1]}`" not in text]
    assert not missing


# ---------------------------------------------------------------- variables and limits


def test_every_variable_is_documented_with_its_default() -> None:
    documented = {row[0]: row[1] for row in rows("configuration.md") if row[0].startswith(variables.PREFIX)}
    for name, field in config.Settings.model_fields.items():
        default = "none" if field.default is None else _text(field.default)
        assert documented.pop(f"{variables.PREFIX}{name.upper()}") == default
    assert documented.keys() == config._CLIENT_VARIABLES


def limits() -> Iterator[tuple[str, str, str]]:
    """File, name and value of every constant of the server that is named like a limit."""
    for path in SOURCES:
        names = [
            target.id
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name) and LIMIT.fullmatch(target.id) and target.id not in NO_LIMITS
        ]
        package = SERVER if path.is_relative_to(SERVER) else CLIENT
        file = path.relative_to(package)
        module = import_module(".".join((package.name, *file.with_suffix("").parts))) if names else None
        yield from ((str(file), name, _text(getattr(module, name))) for name in names)


def test_every_limit_is_documented_with_its_value() -> None:
    documented = {tuple(row[2].split()): row[1] for row in rows("configuration.md") if len(row) == 3}
    for file, name, value in limits():
        assert re.search(rf"(?<!\d){re.escape(value)}(?![\d.])", documented.get((file, name), "")), (file, name, value)


def test_every_documented_limit_is_there() -> None:
    roots: Sequence[Path] = (SERVER, CLIENT, CLIENT / "cli")
    for row in rows("configuration.md"):
        place = row[2].split() if len(row) == 3 else []
        if len(place) == 2 and "." in place[0]:
            assert any((root / place[0]).exists() and place[1] in (root / place[0]).read_text() for root in roots), row


def _text(value: object) -> str:
    if isinstance(value, timedelta):
        return f"{value.days} days" if value.days else f"{value.seconds} s"
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------- examples and links


def test_the_worked_example_is_a_valid_spec() -> None:
    text = (ROOT / "docs" / "product-specs.md").read_text()
    (example,) = re.findall(r"```yaml\n(product: .*?)```", text, re.DOTALL)
    message = json_format.ParseDict(YAML(typ="safe", pure=True).load(example), product_spec_pb2.ProductSpec())
    specs.validate(read_spec(message, []))


@pytest.mark.parametrize("language", ["go", "ts"])
def test_the_code_on_a_client_s_page_is_of_its_programs(language: str) -> None:
    (page,) = (page for page in CLIENT_PAGES if blocks(page, language))
    folders = {"gatekeyv1", "gen", "node_modules", "dist", "build"}
    sources = [path for path in page.parent.rglob(f"*.{language}") if not folders & set(path.parts)]
    code = [_unindented(path.read_text()) for path in sources]
    assert [block for block in blocks(page, language) if not any(_unindented(block) in text for text in code)] == []


def _unindented(code: str) -> str:
    return "\n".join(line.strip() for line in code.strip().splitlines())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
    assert all((document.parent / target).exists() for target in targets), targets


def test_what_is_installed_from_a_checkout_is_a_distribution() -> None:
    """The pages' own test installs nothing, because everything is there already."""
    texts = [path.read_text() for path in (*DOCUMENTS, ROOT / "Makefile", ROOT / "server" / "README.md")]
    lines = [line for text in texts for line in re.findall(r"pip install (.*)", text)]
    named = {each for line in lines for each in re.findall(r"(?<![\w./-])(\.[\w./]*)(?=[\s'\[]|$)", line)}
    assert {"./clients/python", "./server"} <= named
    for each in named:
        assert "project" in tomllib.loads((ROOT / each / "pyproject.toml").read_text()), each


def test_every_decision_has_a_number_of_its_own() -> None:
    pages = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    assert all(page.read_text().startswith(f"# {int(page.name[:4])}. ") for page in pages)


def test_what_holds_a_bound_is_a_test_that_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "security-model.md").read_text())
    assert len(named) > 30
    missing = [each for each in named if not _is_test(*each)]
    assert missing == []


def _is_test(path: str, name: str) -> bool:
    return (ROOT / path).exists() and (not name or f"def {name}(" in (ROOT / path).read_text())
