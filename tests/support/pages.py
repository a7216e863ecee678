"""The blocks of code on a page, and a shell to run them in as a reader would."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import textwrap
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*\Z")
_SAVED_AS = re.compile(r"[Ss]ave \w+ as `([\w.-]+)`")
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Block:
    """A block of code, without what it is indented by."""

    line: int
    language: str
    code: str
    not_run: str | None
    """Why it cannot be run, where the page says so in a comment that readers do not see."""
    saved_as: str | None
    """The file's name, where the paragraph before it says under which to save it."""


def read_blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order."""
    text = page.read_text()
    for match in _FENCE.finditer(text):
        before = text[: match.start()]
        comment = _NOT_RUN.search(before)
        saved = _SAVED_AS.findall(before.rstrip().rpartition("\n\n")[2])
        yield Block(
            line=before.count("\n") + 1,
            language=match[2],
            code=textwrap.dedent(match[3]),
            not_run=comment[1] if comment else None,
            saved_as=saved[-1] if saved else None,
        )


def commands(code: str) -> Iterator[tuple[str, str]]:
    """The commands of a `console` block, which begin with `$ `, each with what is printed below it."""
    for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
        command, _, printed = part.partition("\n")
        while command.endswith("\\"):
            more, _, printed = printed.partition("\n")
            command += f"\n{more}"
        yield command, printed


def is_as_printed(expected: str, actual: str) -> bool:
    """Whether a page shows what was printed.

    `…` stands for any text within a line, and for any number of lines where it is a line. How many spaces there are
    between columns is not compared: it depends on what `…` stands for.
    """
    lines = []
    for line in expected.strip().splitlines():
        if line.strip() == "…":
            lines.append(r"(?:.*\n)*?")
        else:
            pattern = re.escape(line.rstrip()).replace("…", ".*")
            lines.append(re.sub(r"(?:\\ ){2,}", " {2,}", pattern) + r"[ ]*\n")
    return re.fullmatch("".join(lines), actual.strip() + "\n" if actual.strip() else "") is not None


class Shell:
    """A shell in which a page's commands are run one after the other, until the end of a `with`.

    Standard output and standard error come together. What runs in the background ends with it.
    """

    def __init__(self, cwd: Path, environment: Mapping[str, str]) -> None:
        self.output = ""
        """All that was printed."""
        self._process = subprocess.Popen(
            ["bash", "--norc"],
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGTERM)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait(30)

    def run(self, command: str) -> tuple[int, str]:
        """Run a command; answers its exit code and what it printed."""
        assert self._process.stdin is not None
        end = uuid.uuid4().hex
        self._process.stdin.write(f"{command}\necho {end} $?\n".encode())
        self._process.stdin.flush()
        printed = self._read_until(end)
        self.output += printed
        text, _, code = printed.rpartition(end)
        return int(code), text

    def _read_until(self, end: str) -> str:
        stdout = self._process.stdout
        assert stdout is not None
        gives_up_at = time.monotonic() + _TIMEOUT_S
        data = b""
        while not re.search(rf"{end} \d+\n".encode(), data):
            ready, _, _ = select.select([stdout], [], [], max(0, gives_up_at - time.monotonic()))
            more = os.read(stdout.fileno(), 1 << 16) if ready else b""
            assert more, f"the shell has {'ended' if ready else 'not come to an end'}: {data.decode()}"
            data += more
        return data.decode()
