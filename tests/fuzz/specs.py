"""Damaged specs in YAML: what people mistype, and what tries to harm whoever reads it."""

import random
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from gatekey.cli.problems import Failure
from gatekey.cli.specs import read_spec
from gatekey.v1.product_spec_pb2 import ProductSpec

from tests.fuzz import judge

_VALUES = (
    *("null", "~", "", "true", "no", "0", "-1", "1.5", "1e999", ".nan", ".inf", "-.inf", "0x7fffffffffffffff", "0o17"),
    *(
        "9" * 30,
        "9" * 5000,
        "1_000",
        "2026-01-01",
        "2026-01-01T00:00:00Z",
        "12:30:45",
        "'",
        '"',
        '"\\x00"',
        '"\\ud800"',
    ),
    *('"\\0"', "[]", "{}", "[[[]]]", "{a: {b: {c: d}}}", "[a, , b]", "{?}", "? a", "- - - a", "*", "*x", "&x", "&x *x"),
    *(
        "!!python/object:os.system x",
        "!!str 1",
        "!!int x",
        "!!binary aGk=",
        "!!set {a}",
        "!!omap [a: 1]",
        "!!timestamp x",
    ),
    *(
        "!local x",
        "!<tag:yaml.org,2002:int> x",
        "!!float x",
        "!!null x",
        "!!bool x",
        "<<",
        "%TAG",
        "@x",
        "`x`",
        "|",
        ">-",
    ),
    *(
        "'é'",
        "'\u202e'",
        "'🗝️'",
        "x" * 5000,
        "90m",
        "12h",
        "999999999999d",
        "-1d",
        "1.5h",
        "P1D",
        "365d",
        "*a",
        "[*a, *a]",
    ),
)
_LINES = (
    *("---", "...", "%YAML 1.2", "%YAML 9.9", "%TAG ! tag:x,2000:", "<<: *a", "<<: {product: x}", "<<: [*a, *b]"),
    *(
        "? [a, b]\n: c",
        "&a a: &b b",
        "*a : b",
        "? ",
        ": x",
        "-",
        "\t- x",
        "\tproduct: x",
        "# \x07",
        "product: x",
        "roles: 1",
    ),
    *("collections: &a [*a]", "roles: &r\n  - *r", "x" * 20_000, "'" * 3, "{" * 2000, "[" * 2000, "- " * 500 + "x"),
    *("a: " * 50, "? " * 1000, "!" * 200, "&" + "a" * 3000 + " x", "{a: " * 300),
)
_ENDS = (b"\xff\xfe", b"\xed\xa0\x80", b"\0", b"\x1a", b"\xef\xbb\xbf", b"\r", b"\x85", b"\xe2\x80\xa8", b"\x1b[31m")


class Specs:
    """Makes damaged specs."""

    def __init__(self, rng: random.Random, texts: Sequence[str]) -> None:
        self._rng = rng
        self._texts = texts

    def damaged(self) -> bytes:
        """A spec with some damage."""
        rng = self._rng
        text = rng.choice(self._texts)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            text = rng.choice(self._ways())(text)
        data = text.encode("utf-8", "surrogatepass")
        way = rng.randrange(20)
        if way == 0:
            at = rng.randrange(len(data) + 1)
            data = data[:at] + rng.choice(_ENDS) + data[at:]
        elif way == 1:
            encoding = rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7", "cp037"))
            data = text.encode(encoding, "replace")
        elif way == 2:
            data = rng.choice(_ENDS) + data
        elif way == 3:
            data = rng.randbytes(rng.choice((0, 1, 200)))
        return data

    def _ways(self) -> list[Callable[[str], str]]:
        return [
            *[self._value] * 4,
            self._line,
            self._line,
            self._double,
            self._drop,
            self._indent,
            self._cut,
            self._flip,
            self._bomb,
            self._key,
            self._splice,
            self._ends,
        ]

    def _at(self, lines: list[str]) -> int:
        return self._rng.randrange(len(lines)) if lines else 0

    def _value(self, text: str) -> str:
        lines = text.split("\n")
        at = self._at([*lines])
        head, colon, _ = lines[at].partition(":")
        if colon:
            lines[at] = f"{head}: {self._rng.choice(_VALUES)}"
        elif lines[at].lstrip().startswith("- "):
            lines[at] = f"{lines[at].partition('- ')[0]}- {self._rng.choice(_VALUES)}"
        return "\n".join(lines)

    def _line(self, text: str) -> str:
        lines = text.split("\n")
        at = self._at(lines)
        lines.insert(at, " " * self._rng.choice((0, 0, 2, 4)) + self._rng.choice(_LINES))
        return "\n".join(lines)

    def _double(self, text: str) -> str:
        lines = text.split("\n")
        at = self._at(lines)
        return "\n".join(lines[:at] + [lines[at]] * self._rng.choice((1, 2, 300)) + lines[at:])

    def _drop(self, text: str) -> str:
        lines = text.split("\n")
        del lines[self._at(lines)]
        return "\n".join(lines)

    def _indent(self, text: str) -> str:
        lines = text.split("\n")
        at = self._at(lines)
        lines[at] = self._rng.choice((" ", "\t", "        ", "- ", "\u00a0")) + lines[at]
        return "\n".join(lines)

    def _cut(self, text: str) -> str:
        return text[: self._rng.randrange(len(text) + 1)]

    def _flip(self, text: str) -> str:
        if not text:
            return "\0"
        at = self._rng.randrange(len(text))
        return text[:at] + chr(ord(text[at]) ^ 1 << self._rng.randrange(7)) + text[at + 1 :]

    def _bomb(self, text: str) -> str:
        """Aliases of aliases, each nine times the last one."""
        lines = ["b0: &b0 [x, x, x]"]
        lines += [f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 9)}]" for n in range(1, self._rng.choice((3, 12)))]
        name = self._rng.choice(("collections", "roles", "readActions", "x"))
        return "\n".join((*lines, text, f"{name}: *b{len(lines) - 1}"))

    def _key(self, text: str) -> str:
        """Another key in the place of one."""
        lines = text.split("\n")
        at = self._at(lines)
        head, colon, rest = lines[at].partition(":")
        if colon:
            indent = head[: len(head) - len(head.lstrip())]
            key = self._rng.choice(
                ("", "[a]", "{a: b}", "1", "null", "'a b'", "?", "<<", "product", "grants", "a" * 2000)
            )
            lines[at] = f"{indent}{key}:{rest}"
        return "\n".join(lines)

    def _splice(self, text: str) -> str:
        other = self._rng.choice(self._texts)
        return text[: self._rng.randrange(len(text) + 1)] + other[self._rng.randrange(len(other)) :]

    def _ends(self, text: str) -> str:
        return text.replace("\n", self._rng.choice(("\r\n", "\r", "\n\n", "\u2028", "\x85", " \n")))


def read(path: Path) -> tuple[ProductSpec | None, list[str]]:
    """Read a file as the command line does: the spec, where it is one, and what is wrong with how it is refused."""
    try:
        with warnings.catch_warnings():
            # It would be printed.
            warnings.simplefilter("error")
            return read_spec(path), []
    except Failure as failure:
        lines = [line.replace(str(path), "spec.yaml") for line in failure.lines]
        return None, judge.faults_of_problem(lines, failure.exit_code)
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return None, [f"reading raises {type(error).__name__}: {error}"]
