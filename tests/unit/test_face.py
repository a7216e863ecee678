"""What newcomers and the repository's host read: the root's pages, workflows, forms, hooks, and the documents' site."""

import json
import re
import shlex
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from gatekey.v1 import (
    api_key_service_pb2,
    audit_service_pb2,
    cache_service_pb2,
    check_service_pb2,
    machine_user_service_pb2,
    member_service_pb2,
    product_service_pb2,
    product_spec_pb2,
    tenant_service_pb2,
    types_pb2,
)
from google.protobuf.descriptor import Descriptor, EnumDescriptor
from ruamel.yaml import YAML

from docs.generator import links, pages, reference
from tests.support.server import ROOT

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
YAML_FILES = [*sorted(GITHUB.rglob("*.yml")), ROOT / ".pre-commit-config.yaml", ROOT / "mkdocs.yml"]
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CODE_OF_CONDUCT.md", *sorted(GITHUB.glob("*.md"))]
INSTALL = re.compile(r"sudo apt-get update && sudo apt-get install -y --no-install-recommends( [a-z0-9-]+)+")
"""A step that only installs packages of the runner's system."""
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
FILES = [
    file.DESCRIPTOR
    for file in (
        api_key_service_pb2,
        audit_service_pb2,
        cache_service_pb2,
        check_service_pb2,
        machine_user_service_pb2,
        member_service_pb2,
        product_service_pb2,
        product_spec_pb2,
        tenant_service_pb2,
        types_pb2,
    )
]


def load(path: Path) -> Any:
    """The value of a file of YAML, which has each key once."""
    return YAML(typ="safe", pure=True).load(path)


def steps(workflow: Any) -> list[Any]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


# ---------------------------------------------------------------- the host's files


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_yaml_is_a_mapping(path: Path) -> None:
    assert isinstance(load(path), dict)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_have_few_rights_limits_and_pinned_actions(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert all("permissions" not in job and job["timeout-minutes"] <= 90 for job in workflow["jobs"].values())
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert used
    assert [action for action in used if not re.fullmatch(r"actions/[a-z-]+@v\d+", action)] == []
    checkouts = [step for step in steps(workflow) if step.get("uses", "").startswith("actions/checkout@")]
    assert [step["with"]["persist-credentials"] for step in checkouts] == [False] * len(workflow["jobs"])


def test_ci_runs_the_script_on_every_supported_python() -> None:
    workflow = load(GITHUB / "workflows" / "ci.yml")
    (job,) = workflow["jobs"].values()
    installs, runs = [step["run"] for step in job["steps"] if "run" in step]
    # Without the pooler, the tests of it are skipped.
    assert INSTALL.fullmatch(installs)
    assert installs.split()[-1] == "pgbouncer"
    assert runs == "bash .ci/run"
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "server" / "pyproject.toml").read_text())
    assert job["strategy"]["matrix"]["python"] == classifiers


def test_every_workflow_runs_what_is_in_the_repository() -> None:
    commands = [step["run"] for path in WORKFLOWS for step in steps(load(path)) if "run" in step]
    runs = [command for command in commands if not INSTALL.fullmatch(command)]
    assert len(runs) == len(WORKFLOWS)
    for command in runs:
        program, argument = shlex.split(command)
        assert argument in TARGETS if program == "make" else (ROOT / argument).is_file()


def test_the_script_builds_the_site() -> None:
    assert "make docs\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_issue_forms_have_what_the_host_requires(path: Path) -> None:
    form = load(path)
    assert form.keys() >= {"name", "description", "body"}
    fields = [element for element in form["body"] if element["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert ids
    assert len(set(ids)) == len(ids)
    for element in form["body"]:
        attributes = element["attributes"]
        assert element["type"] in {"markdown", "input", "textarea", "dropdown", "checkboxes"}
        assert attributes["value" if element["type"] == "markdown" else "label"]
        assert element["type"] not in {"dropdown", "checkboxes"} or attributes["options"]
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_there_are_forms_for_bugs_features_and_questions() -> None:
    assert [path.stem for path in FORMS] == ["bug", "feature", "question"]
    assert load(GITHUB / "ISSUE_TEMPLATE" / "config.yml")["blank_issues_enabled"] is False


def test_updates_cover_every_manifest() -> None:
    updates = load(GITHUB / "dependabot.yml")["updates"]
    covered = {
        (update["package-ecosystem"], directory)
        for update in updates
        for directory in update.get("directories", [update.get("directory")])
    }
    manifests = {"pip": "pyproject.toml", "npm": "package.json", "gomod": "go.mod", "docker": "Dockerfile"}
    there = {
        (ecosystem, f"/{path.parent.relative_to(ROOT)}".removesuffix("."))
        for ecosystem, name in manifests.items()
        for pattern in (name, f"*/{name}", f"clients/*/{name}")
        for path in ROOT.glob(pattern)
    }
    assert covered == there | {("github-actions", "/")}
    assert all(update["schedule"]["interval"] in {"daily", "weekly", "monthly"} for update in updates)


def test_hooks_are_local_and_their_commands_exist() -> None:
    (repo,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local"
    for hook in repo["hooks"]:
        assert hook.keys() >= {"id", "name", "language", "entry"}
        assert hook["language"] == "system"
        program = Path(shlex.split(hook["entry"])[0])
        assert program.parent == Path(".venv/bin")
        # The environment of the tests is .venv, or made in the same way.
        assert shutil.which(program.name, path=Path(sys.executable).parent), hook["id"]
    assert {"ruff-check", "ruff-format"} <= {hook["id"] for hook in repo["hooks"]}


def test_the_development_container_makes_the_environment() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert container["postCreateCommand"] == "make .venv/.dev"
    assert (ROOT / ".devcontainer" / container["build"]["dockerfile"]).is_file()
    assert container["forwardPorts"] == [int(port) for port in container["portsAttributes"]]


def test_editors_have_the_line_length_of_the_formatter() -> None:
    length = re.search(r"^line-length = (\d+)$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert length is not None
    assert f"[*.{{py,pyi}}]\nmax_line_length = {length[1]}\n" in (ROOT / ".editorconfig").read_text()


# ---------------------------------------------------------------- the root's pages


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_target_that_a_page_names_exists(path: Path) -> None:
    text = path.read_text()
    named = set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)) | set(re.findall(r"`make ([a-z-]+)", text))
    assert named <= TARGETS
    assert path.name != "CONTRIBUTING.md" or len(named) > 5


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_of_the_face_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\((?!https:)([^)#]+)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_readers_of_readme_find_the_face() -> None:
    text = (ROOT / "README.md").read_text()
    assert "](CONTRIBUTING.md)" in text
    assert "](SECURITY.md)" in text
    assert "](docs/security-model.md)" in (ROOT / "SECURITY.md").read_text()


def anchor(heading: str) -> str:
    """What the repository's host makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_anchors_are_right_in_the_repository_as_on_the_site() -> None:
    # The site's own are checked when it is built; the renderer there makes anchors by a rule of its own.
    wrong = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "clients").glob("*/README.md")]:
        for target, fragment in re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", page.read_text()):
            text = (page.parent / target if target else page).read_text()
            prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
            headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
            if fragment not in map(anchor, headings):
                wrong.append(f"{page.relative_to(ROOT)}: {target}#{fragment}")
    assert wrong == []


# ---------------------------------------------------------------- the site


@cache
def written() -> dict[str, str]:
    """The pages of the API reference."""
    return reference.reference(ROOT)


def messages(nested: dict[str, Descriptor], outer: str = "") -> dict[str, Descriptor]:
    found = {f"{outer}{name}": message for name, message in nested.items() if not message.GetOptions().map_entry}
    for name, message in list(found.items()):
        found |= messages(dict(message.nested_types_by_name), f"{name}.")
    return found


def enums(file: Any) -> dict[str, EnumDescriptor]:
    nested = {
        f"{name}.{enum.name}": enum
        for name, message in messages(dict(file.message_types_by_name)).items()
        for enum in message.enum_types
    }
    return {**file.enum_types_by_name, **nested}


def test_the_reference_has_every_method_message_field_and_enum() -> None:
    assert {file.name for file in FILES} == {
        str(path.relative_to(ROOT / "protos")) for path in (ROOT / "protos" / "gatekey" / "v1").glob("*.proto")
    }
    assert set(written()) == {reference.INDEX, *(f"protos/{file.name}.md" for file in FILES)}
    for file in FILES:
        page = written()[f"protos/{file.name}.md"]
        sections = {
            match[1]: match[2]
            for match in re.finditer(r"^### [^{\n]+ \{ #([\w.]+) \}\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
        }
        methods = {
            f"{service.name}.{method.name}": method
            for service in file.services_by_name.values()
            for method in service.methods
        }
        of_file = messages(dict(file.message_types_by_name))
        assert set(sections) == {*methods, *of_file, *enums(file)}
        for name, method in methods.items():
            assert f"`{method.input_type.full_name.removeprefix('gatekey.v1.')}`" in sections[name]
            assert f"`{method.output_type.full_name.removeprefix('gatekey.v1.')}`" in sections[name]
            assert f"#{name})" in written()[reference.INDEX]
        for name, message in of_file.items():
            rows = re.findall(r"^\| `(\w+)` \| .+ \| (.+) \|$", sections[name], re.MULTILINE)
            assert [row[0] for row in rows] == [field.name for field in message.fields], name
            assert [row for row in rows if not row[1].strip()] == [], "every field has a comment"
        for name, enum in enums(file).items():
            values = re.findall(r"^\| <code>(\w+)</code> \| (-?\d+) \| ", sections[name], re.MULTILINE)
            assert values == [(value.name, str(value.number)) for value in enum.values]


def test_the_reference_has_the_comments_of_the_protos() -> None:
    for file in FILES:
        words = " ".join(re.sub(r"\]\([^)]*\)|\[|<br>", " ", written()[f"protos/{file.name}.md"]).split())
        proto = (ROOT / "protos" / file.name).read_text()
        for comment in re.findall(r"^\s*// ([^`<>|&\n]{30,})$", proto, re.MULTILINE):
            assert comment.strip() in words, comment


def test_every_page_of_the_documents_is_in_the_navigation() -> None:
    nav = load(ROOT / "mkdocs.yml")["nav"]
    collected = pages.collect(ROOT, nav, written())
    expanded = list(pages.entries(pages.expand(nav, set(collected))))
    assert len(set(expanded)) == len(expanded)
    assert [entry for entry in expanded if entry not in collected] == []
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")}
    assert there <= set(expanded)
    assert "examples/service/app.py.md" in collected, "a source file that is linked has a page"
    decisions = str(collected["docs/adr/README.md"])
    assert [
        path.name for path in sorted((ROOT / "docs" / "adr").glob("*.md")) if f"]({path.name})" not in decisions
    ] == []


def write(directory: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def test_links_to_sources_and_directories_become_links_to_pages(tmp_path: Path) -> None:
    files = {
        "README.md": "# A\n\n[code](src/a.py) [list](lib/) [readme](pkg/) [b](docs/b.md#c) [x](https://x.test/)\n"
        "```text\n[no](link.md)\n```\n<!-- not run: never -->\n```sh\nmake\n```\n",
        "docs/b.md": "# B\n\n## C\n\n[code](../src/a.py), [made](../made/README.md)\n",
        "src/a.py": "x = 1\n",
        "lib/d.md": "# D\n",
        "pkg/README.md": "# P\n",
    }
    collected = pages.collect(
        write(tmp_path, files), ["README.md"], {"made/README.md": "# Made\n\n[up](../README.md)\n"}
    )
    assert set(collected) == {
        "README.md", "docs/b.md", "src/a.py.md", "lib/README.md", "lib/d.md", "pkg/README.md", "made/README.md",
    }  # fmt: skip
    assert collected["README.md"] == (
        "# A\n\n[code](src/a.py.md) [list](lib/README.md) [readme](pkg/README.md) [b](docs/b.md#c) [x](https://x.test/)\n"
        "```text\n[no](link.md)\n```\n```sh\nmake\n```\n"
    )
    assert collected["docs/b.md"] == "# B\n\n## C\n\n[code](../src/a.py.md), [made](../made/README.md)\n"
    assert collected["src/a.py.md"] == "# a.py\n\n`````python\nx = 1\n`````\n"
    assert collected["lib/README.md"] == "# lib\n\n- [D](d.md)\n"


@pytest.mark.parametrize("target", ["gone.md", "src/gone.py", "src/README.md", "../outside.md"])
def test_a_link_to_nothing_is_refused(tmp_path: Path, target: str) -> None:
    write(tmp_path, {"outside.md": "# O\n", "root/src/a.py": "", "root/README.md": f"# A\n\n[x]({target})\n"})
    with pytest.raises(pages.BrokenLink, match=r"README\.md"):
        pages.collect(tmp_path / "root", ["README.md"], {})


def test_patterns_in_the_navigation_take_what_is_named_nowhere_else() -> None:
    paths = {"README.md", "docs/a.md", "docs/b.md", "docs/adr/1.md"}
    nav: pages.Nav = [{"Home": "README.md"}, {"More": ["docs/b.md", "docs/*.md"]}, "docs/*/*.md"]
    assert pages.expand(nav, paths) == [{"Home": "README.md"}, {"More": ["docs/b.md", "docs/a.md"]}, "docs/adr/1.md"]


def test_broken_links_of_the_site_are_found(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "index.html": '<a href="a/">1</a><a href="a/#b">2</a><a href="#top">3</a><h1 id="top">A</h1>'
            '<a href="https://x.test/">4</a><a href="mailto:x">5</a><img src="i.svg">',
            "a/index.html": '<h2 id="b">B</h2><a href="..">1</a><a href="../a/#c">2</a><a href="../b/">3</a>'
            '<a href="#d">4</a><script src="../s.js"></script><a href="../../">5</a>',
            "i.svg": "",
            "404.html": '<a href="/elsewhere/">1</a>',
        },
    )
    assert list(links.broken(tmp_path)) == [
        "a/index.html: ../a/#c: no such anchor",
        "a/index.html: ../b/: no such page",
        "a/index.html: #d: no such anchor",
        "a/index.html: ../s.js: no such page",
        "a/index.html: ../../: no such page",
    ]
