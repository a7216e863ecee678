"""No module imports another one that imports it, by whatever way: also in a function, or for a type checker alone.

`make lint-imports` holds the layers. It does not see circles inside one layer, which this test finds.
"""

import ast
from collections.abc import Iterator, Mapping

import pytest

from tests.support.server import ROOT

PACKAGES = {
    "gatekey": ROOT / "clients/python/gatekey",
    "gatekey_command": ROOT / "clients/python/gatekey_command",
    "gatekey_server": ROOT / "server/gatekey_server",
}

Graph = Mapping[str, set[str]]


def sources() -> dict[str, str]:
    """Return the text of each module, by its full name."""
    return {
        ".".join((package, *path.relative_to(directory).with_suffix("").parts)).removesuffix(".__init__"): (
            path.read_text()
        )
        for package, directory in PACKAGES.items()
        for path in directory.rglob("*.py")
    }


def imports(texts: Mapping[str, str]) -> Graph:
    """Return which of the modules each of them imports.

    An import of a module also runs the `__init__` of its package. That is left out: each package whose `__init__`
    imports its modules would be a circle.
    """
    return {name: set(_imported(name, text, texts)) - {name} for name, text in texts.items()}


def _imported(name: str, text: str, known: Mapping[str, str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{name}, line {node.lineno}: a relative import"
            assert not node.level, f"{name}, line {node.lineno}: a relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                if submodule in known:
                    yield submodule
                elif node.module in known:
                    yield node.module


def circles(graph: Graph) -> set[frozenset[str]]:
    """Return the strongly connected components of more than one module, by Tarjan's algorithm."""
    found: set[frozenset[str]] = set()
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_: list[str] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        open_.append(module)
        for imported in sorted(graph[module]):
            if imported not in order:
                visit(imported)
            if imported in open_:
                lowest[module] = min(lowest[module], lowest[imported])
        if lowest[module] == order[module]:
            start = open_.index(module)
            component = frozenset(open_[start:])
            del open_[start:]
            if len(component) > 1:
                found.add(component)

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return found


def test_no_module_imports_itself_through_others() -> None:
    graph = imports(sources())
    assert len(graph) > 150
    assert sum(map(len, graph.values())) > 500
    found = circles(graph)
    assert [sorted(circle) for circle in found] == [], "these import each other"


@pytest.mark.parametrize(
    "closing",
    [
        "import p.a",
        "from p import a",
        "from p.a import name",
        "def f():\n    from p.a import name",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import name",
    ],
)
def test_a_circle_is_found_in_each_way_to_import(closing: str) -> None:
    texts = {"p": "", "p.a": "from p import b", "p.b": "import p.c, os", "p.c": closing, "p.d": "import p.a"}
    assert circles(imports(texts)) == {frozenset({"p.a", "p.b", "p.c"})}
    texts["p.c"] = "import p.e\nfrom p.e import x"
    assert circles(imports(texts | {"p.e": ""})) == set()


def test_separate_circles_are_told_apart() -> None:
    graph = {"a": {"b"}, "b": {"a", "c"}, "c": {"d"}, "d": {"e"}, "e": {"c"}, "f": {"a"}}
    assert circles(graph) == {frozenset("ab"), frozenset("cde")}
