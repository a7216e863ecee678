"""How commands end when they cannot do what they were asked."""

import re

import typer

from gatekey.core.secrets import TAIL_CHARS, is_well_formed

_WORD = re.compile(r"[A-Za-z0-9_-]+")


class Failure(Exception):
    """The command failed: a line, and more lines where there is more to say.

    `reason` is the server's, in UPPER_SNAKE_CASE, or one of the same form.
    """

    exit_code = 1

    def __init__(self, message: str, *more: str, reason: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.more = more
        self.reason = reason

    @property
    def lines(self) -> tuple[str, ...]:
        """All there is to say, the reason included."""
        return (f"{self.message} ({self.reason})" if self.reason else self.message, *self.more)


class Misuse(Failure):
    """The command line asks for something that cannot be."""

    exit_code = 2


class OutputFailed(Failure):
    """Standard output takes nothing, which was seen before anything was done."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="OUTPUT_FAILED")


class SecretLost(Failure):
    """Something was made whose secret, which is shown once, did not get out."""

    exit_code = 4

    def __init__(self, message: str, *more: str) -> None:
        super().__init__(message, *more, reason="SECRET_LOST")


def complain(kind: str, first: str, *more: str) -> None:
    """Say on standard error what is wrong. No secret gets through, and nothing that steers a terminal."""
    for line in (f"{kind}: {first}", *(f"  {line}" for line in more)):
        typer.echo(printable(_WORD.sub(_masked, line)), err=True)


def printable(text: str) -> str:
    """The text with every character that cannot be printed escaped."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _masked(word: re.Match[str]) -> str:
    text = word.group()
    return f"{text[:-TAIL_CHARS]}…" if is_well_formed(text) else text
