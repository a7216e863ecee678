"""Secrets as they come from files and variables."""

_AROUND = " \t\r\n\v\f\0\ufeff"
"""What editors, shells and mounted files put around a secret: white space of ASCII, NUL, and a byte order mark."""
_QUOTES = "\"'`"


def clean(text: str, source: str) -> str:
    """The secret without what is around it; empty where there is none.

    `source` tells people where it came from. Raises `ValueError`, which does not tell the secret, where something is
    left that no secret holds; the transport would print it.
    """
    secret = bare(text)
    if in_quotes(secret):
        raise ValueError(f"{source}: is in quotes, which would be a part of the token: leave them out")
    for position, character in enumerate(secret, 1):
        if not "!" <= character <= "~":
            raise ValueError(
                f"{source}: what it holds is not a token: of its {len(secret)} characters, number {position}"
                f" ({_name(character)}) can be in none"
            )
    return secret


def bare(text: str) -> str:
    """The text without what is put around it by accident."""
    return text.strip(_AROUND)


def in_quotes(text: str) -> bool:
    """Whether somebody has quoted a value for a shell that does not read it."""
    return text[:1] != "" and text[0] in _QUOTES and text[-1] == text[0]


def _name(character: str) -> str:
    if character.isspace() or not character.isprintable():
        return f"U+{ord(character):04X}"
    return "not ASCII"
