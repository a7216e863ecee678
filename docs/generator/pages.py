"""The pages of the site, from the Markdown as it is in the repository.

Readers of the repository follow links to source files and directories. On the site, a source file becomes a page
that shows it, and a directory becomes its README or a list of its pages.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeAlias

Nav: TypeAlias = "list[str | dict[str, str | Nav]]"

IMAGES = {".gif", ".jpg", ".jpeg", ".png", ".svg", ".webp"}
LISTS = {"clients": "Clients", "docs/adr": "Decisions"}
LANGUAGES = {".go": "go", ".proto": "proto", ".py": "python", ".sh": "sh", ".sql": "sql", ".ts": "ts", ".yaml": "yaml"}

_FENCED = re.compile(r"^( *)(```+).*?^ *\2`* *$\n?", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"^<!-- not run: .*? -->\n", re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


class BrokenLink(Exception):
    """A page links to a file that is not in the repository."""


def collect(root: Path, nav: Nav, generated: Mapping[str, str]) -> dict[str, str | bytes]:
    """Return all pages by their paths on the site.

    They are the pages that the navigation names, the Markdown in docs/, the pages in `generated`, and every file that
    one of them links to. Images are bytes, pages are Markdown. Raise `BrokenLink` for a link to nothing.
    """
    pages: dict[str, str | bytes] = {}
    waiting = [_page_of(root, "the navigation", entry, generated) for entry in _named(root, nav)]
    waiting += [str(path.relative_to(root)) for path in sorted((root / "docs").rglob("*.md"))]
    waiting += generated
    while waiting:
        path = waiting.pop()
        if path in pages:
            continue
        content = generated[path] if path in generated else _read(root, path)
        if isinstance(content, str):
            content, targets = _with_links(root, path, content, generated)
            waiting += targets
        pages[path] = content
    return pages


def _named(root: Path, nav: Nav) -> Iterator[str]:
    """Return the pages that the navigation names; the directory, where it has no README and gets a list."""
    for entry in entries(nav):
        if "*" not in entry:
            is_list = entry.endswith("/README.md") and not (root / entry).exists() and (root / entry).parent.is_dir()
            yield posixpath.dirname(entry) if is_list else entry


def title(markdown: str) -> str:
    """Return the text of the first heading."""
    found = re.search(r"^# (.+)$", markdown, re.MULTILINE)
    return found[1] if found else ""


def expand(nav: Nav, paths: set[str]) -> Nav:
    """Return the navigation with every pattern replaced by the pages that match it and are in no earlier place."""
    named = {entry for entry in entries(nav) if "*" not in entry}
    return _expand(nav, sorted(paths - named))


def entries(nav: Nav) -> Iterator[str]:
    """Return the pages and patterns of the navigation, in its order."""
    for item in nav:
        for value in item.values() if isinstance(item, dict) else [item]:
            if isinstance(value, str):
                yield value
            else:
                yield from entries(value)


def _expand(nav: Nav, free: list[str]) -> Nav:
    expanded: Nav = []
    for item in nav:
        if isinstance(item, dict):
            expanded.append(
                {name: value if isinstance(value, str) else _expand(value, free) for name, value in item.items()}
            )
        elif "*" in item:
            # `*` does not match a slash here.
            matching = [path for path in free if fnmatch(path, item) and path.count("/") == item.count("/")]
            free[:] = [path for path in free if path not in matching]
            expanded += matching
        else:
            expanded.append(item)
    return expanded


def _read(root: Path, path: str) -> str | bytes:
    """Return a page of the repository; what is no Markdown there is shown as it is."""
    file = root / path
    if file.suffix in IMAGES:
        return file.read_bytes()
    if file.exists():
        return _NOT_RUN.sub("", file.read_text())
    if file.name == "README.md":
        return _list(root, posixpath.dirname(path))
    source = file.with_suffix("")
    return f"# {source.name}\n\n`````{LANGUAGES.get(source.suffix, 'text')}\n{source.read_text().rstrip()}\n`````\n"


def _list(root: Path, directory: str) -> str:
    """Return a page that lists the pages of a directory, and names its other files."""
    lines = []
    for entry in sorted((root / directory).iterdir()):
        page = entry / "README.md" if entry.is_dir() else entry
        if page.suffix == ".md" and page.exists():
            lines.append(f"- [{title(page.read_text()) or entry.name}]({page.relative_to(root / directory)})")
        elif entry.is_file():
            lines.append(f"- `{entry.name}`")
    return f"# {LISTS.get(directory, directory)}\n\n" + "\n".join(lines) + "\n"


def _with_links(root: Path, page: str, markdown: str, generated: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return a page with links that lead to pages, and the paths of these."""
    targets: list[str] = []

    def translate(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), match[1]))
        targets.append(_page_of(root, page, path, generated))
        return posixpath.relpath(targets[-1], posixpath.dirname(page) or ".") + (match[2] or "")

    text, end = "", 0
    for fenced in _FENCED.finditer(markdown):
        text += _LINK.sub(translate, markdown[end : fenced.start()]) + fenced[0]
        end = fenced.end()
    return text + _LINK.sub(translate, markdown[end:]), targets


def _page_of(root: Path, page: str, path: str, generated: Mapping[str, str]) -> str:
    """Return the path of the page that stands for a file or directory of the repository."""
    if path in generated:
        return path
    if path.startswith("..") or not (root / path).exists():
        raise BrokenLink(f"{page} links to {path}, which does not exist")
    if (root / path).is_dir():
        return posixpath.join(path, "README.md")
    return path if path.endswith((".md", *IMAGES)) else f"{path}.md"
