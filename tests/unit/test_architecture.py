"""`docs/architecture.md` names files, functions, classes and packages that exist, and leaves no package out."""

import ast
import re
from pathlib import Path

import pytest

from tests.support.server import ROOT

PAGE = ROOT / "docs" / "architecture.md"
SERVER, CLIENT = ROOT / "server" / "gatekey_server", ROOT / "clients" / "python" / "gatekey"
ROOTS = (ROOT, SERVER, CLIENT, SERVER.parent, CLIENT.parent)
SUFFIXES = (".py", ".md", ".sql", ".proto", ".toml", ".yaml", ".go", ".ts")
NAMED = re.compile(r"(?P<path>[\w./-]+\.py):(?P<name>[A-Za-z_][\w.]*)")


def spans() -> list[str]:
    """The texts in backticks, without the blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE.read_text(), flags=re.DOTALL))


def find(path: str) -> Path | None:
    """The file or directory that is meant by a path on the page."""
    return next((root / path for root in ROOTS if (root / path).exists()), None)


def names_in(file: Path) -> set[str]:
    """Functions, classes, methods as `Class.method`, and constants of a module."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{each.name}"
                for each in node.body
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            }
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_every_path_exists() -> None:
    paths = [span for span in spans() if span.endswith((*SUFFIXES, "/")) and not span.startswith("_…")]
    assert len(paths) > 60
    assert [path for path in paths if find(path) is None] == []


def test_every_name_is_in_its_file() -> None:
    named = [match for match in map(NAMED.fullmatch, spans()) if match]
    assert len(named) > 60
    missing = []
    for match in named:
        file = find(match["path"])
        if file is None or match["name"] not in names_in(file):
            missing.append(match[0])
    assert missing == []


def test_every_package_is_named() -> None:
    text = PAGE.read_text()
    packages = [
        f"{package.parent.relative_to(root.parent)}/"
        for root in (SERVER, CLIENT)
        for package in root.rglob("__init__.py")
        if package.parent != root
    ]
    queries = {"gatekey_server/store/queries/"}
    assert len(packages) > 12
    assert [package for package in packages if f"`{package}`" not in text and package not in queries] == []


def test_every_kind_of_change_has_places() -> None:
    _, places = PAGE.read_text().split("## Where does my line go")
    titles = re.findall(r"^### (.+)$", places, re.MULTILINE)
    assert len(titles) >= 9
    for title, body in zip(titles, re.split(r"^### .+$", places, flags=re.MULTILINE)[1:], strict=True):
        assert re.search(r"^1\. ", body, re.MULTILINE), title


def test_operators_are_told_every_metric() -> None:
    metrics = re.findall(r'"(gatekey_\w+)"', (SERVER / "runtime" / "metrics.py").read_text())
    text = (ROOT / "docs" / "operations.md").read_text()
    assert len(metrics) > 8
    assert [metric for metric in metrics if not re.search(rf"`{metric}(_total)?(\{{\w+\}})?`", text)] == []


def test_operators_are_told_every_log_event() -> None:
    logged = re.compile(r'_log\.(?:info|warning|error|exception)\(\s*"([a-z_]+\.[a-z_]+)"')
    events = {event for file in SERVER.rglob("*.py") for event in logged.findall(file.read_text())}
    text = (ROOT / "docs" / "operations.md").read_text()
    assert len(events) > 20
    assert sorted(event for event in events if f"`{event}`" not in text) == []


def test_links_lead_to_headings_and_files() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "bench").rglob("*.md")]
    assert len(pages) > 15
    broken = []
    for page in pages:
        for file, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
            target = page.parent / file if file else page
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE) if target.is_file() else []
            if not target.exists() or (heading and heading not in map(_anchor, headings)):
                broken.append(f"{page.relative_to(ROOT)}: {file}#{heading}")
    assert broken == []


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_decision_has_a_status_and_a_date() -> None:
    for page in sorted((ROOT / "docs" / "adr").glob("*.md")):
        head = page.read_text()[:400]
        status = re.search(r"^- Status: (?:accepted|superseded by \[(\d+)\]\(([\w.-]+)\))$", head, re.MULTILINE)
        assert status is not None, page.name
        assert re.search(r"^- Date: \d{4}-\d{2}-\d{2}$", head, re.MULTILINE), page.name
        if status[2]:
            assert f"[{int(page.name[:4])}]({page.name})" in (page.parent / status[2]).read_text(), page.name


# One of each kind that exists: where it is named is where another one of its kind has to go.
SAMPLES = {
    "An RPC": r"DisableApiKey|disable_api_key|DISABLE_API_KEY",
    "A reason of a denial": r"\b(?:REASON_)?TENANT_SUSPENDED\b",
    "A reason of an error": r"\bKEY_OF_OTHER_MEMBER\b",
    "A field of a product spec": r"\bown_keys_only\b",
    "A table or a column": r"\brevoke_reason\b",
    "A metric": r"\bgatekey_cache_resets\b",
    "A variable of the configuration": r"\bkey_retention_days\b|GATEKEY_KEY_RETENTION_DAYS",
}
GENERATED = re.compile(r"/v1/|_methods\.py|gatekeyv1|src/gen/|node_modules")


def section(heading: str) -> str:
    """The text below a heading."""
    found = re.search(rf"^### {heading}\n(.*?)(?=^##|\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    return found[1]


@pytest.mark.parametrize("heading", SAMPLES)
def test_the_places_of_a_change_are_those_of_an_earlier_one(heading: str) -> None:
    """Every file of the product that names the sample is in the section, or the directory that it is in."""
    named = [find(span.partition(":")[0]) for span in re.findall(r"`([^`\n]+)`", section(heading))]
    known = [path for path in named if path is not None]
    files = [path for root in (SERVER, CLIENT, ROOT / "protos") for path in root.rglob("*") if path.suffix in SUFFIXES]
    found = [
        path for path in files if not GENERATED.search(str(path)) and re.search(SAMPLES[heading], path.read_text())
    ]
    assert found
    missing = [str(path.relative_to(ROOT)) for path in found if not {path, *path.parents} & set(known)]
    assert missing == []
