"""Resource paths, the patterns that cover them, and grants."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from sys import intern

from gatekey.core.errors import InvalidRequest

Path = tuple[str, ...]
"""The segments of a resource path: collection, id, collection, id, …"""

ANY = "*"
MAX_PATH_CHARS = 1024
MAX_SEGMENTS = 16
MAX_SEGMENT_CHARS = 256
MAX_ACTIONS = 64
_SHOWN_GRANTS = 8
_SHOWN_CHARS = 400

# RFC 3986's pchar without `*`: the characters that a URL path can hold unchanged. Clients percent-encode
# others; Gatekey compares and never decodes.
ID_CHARS = r"A-Za-z0-9._~!$&'()+,;=:@%-"
_SEGMENT = re.compile(rf"[{ID_CHARS}]+")
_ID_SEGMENT = rf"(?!\.{{1,2}}(?:/|\Z))[{ID_CHARS}]{{1,{MAX_SEGMENT_CHARS}}}"
_PATH = re.compile(rf"{_ID_SEGMENT}(?:/{_ID_SEGMENT}){{0,{MAX_SEGMENTS - 1}}}")
_ANY_SEGMENT = rf"(?:\*(?=/|\Z)|{_ID_SEGMENT})"
_PATTERN = re.compile(rf"{_ANY_SEGMENT}(?:/{_ANY_SEGMENT}){{0,{MAX_SEGMENTS - 1}}}")
_ACTION = re.compile(r"[a-z][A-Za-z0-9_.:-]{0,63}")


@dataclass(frozen=True, slots=True)
class Permission:
    """One action on one resource."""

    resource: str
    action: str


@dataclass(frozen=True, slots=True)
class Grant:
    """A resource pattern and the actions it gives; `*` among the actions stands for every action."""

    resource: str
    actions: tuple[str, ...]


def parse_path(text: str, field: str) -> Path:
    """Split a resource path without wildcards.

    Raises `InvalidRequest` (`RESOURCE_REQUIRED`, `RESOURCE_TOO_LONG`, `RESOURCE_INVALID`).
    """
    if len(text) <= MAX_PATH_CHARS and _PATH.fullmatch(text):
        return tuple(text.split("/"))
    # It is invalid. The slow path finds the reason.
    return _split(text, field, wildcards=False)


def parse_pattern(text: str, field: str) -> Path:
    """Split a resource pattern. Raises as `parse_path`."""
    return _split(text, field, wildcards=True)


def parse_action(text: str, field: str, *, wildcard: bool = False) -> str:
    """Check the form of an action's name. Raises `InvalidRequest` (`ACTION_REQUIRED`, `ACTION_INVALID`)."""
    if not text:
        raise InvalidRequest.at(field, "ACTION_REQUIRED", "an action is required")
    if (wildcard and text == ANY) or _ACTION.fullmatch(text):
        return text
    raise InvalidRequest.at(
        field,
        "ACTION_INVALID",
        "an action is a lower-case letter, then up to 63 letters, digits, `_`, `.`, `:` or `-`",
    )


def is_well_formed(grant: Grant) -> bool:
    """Whether a grant has the right form. If not, `parse_pattern` and `parse_action` report its problems."""
    return (
        0 < len(grant.actions) <= MAX_ACTIONS
        and len(grant.resource) <= MAX_PATH_CHARS
        and _PATTERN.fullmatch(grant.resource) is not None
        and all(map(_may_be_granted, grant.actions))
    )


# Few different actions occur.
@lru_cache(maxsize=4096)
def _may_be_granted(action: str) -> bool:
    return action == ANY or _ACTION.fullmatch(action) is not None


def _split(text: str, field: str, *, wildcards: bool) -> Path:
    if not text:
        raise InvalidRequest.at(field, "RESOURCE_REQUIRED", "a resource is required")
    if len(text) > MAX_PATH_CHARS:
        raise InvalidRequest.at(field, "RESOURCE_TOO_LONG", f"more than {MAX_PATH_CHARS} characters")
    segments = tuple(text.split("/"))
    if len(segments) > MAX_SEGMENTS:
        raise InvalidRequest.at(field, "RESOURCE_TOO_LONG", f"more than {MAX_SEGMENTS} segments")
    for number, segment in enumerate(segments, 1):
        problem = _segment_problem(segment, wildcards=wildcards)
        if problem:
            raise InvalidRequest.at(field, "RESOURCE_INVALID", f"segment {number} {problem}")
    return segments


def _segment_problem(segment: str, *, wildcards: bool) -> str | None:
    if not segment:
        return "is empty"
    if segment == ANY:
        return None if wildcards else "is a wildcard; a path names one resource"
    if segment in {".", ".."}:
        return f"is `{segment}`; paths are not resolved"
    if len(segment) > MAX_SEGMENT_CHARS:
        return f"has more than {MAX_SEGMENT_CHARS} characters"
    if not _SEGMENT.fullmatch(segment):
        return "holds a character other than A-Z a-z 0-9 . _ ~ ! $ & ' ( ) + , ; = : @ % -"
    return None


def covers(pattern: Path, path: Path) -> bool:
    """Whether a pattern matches the path or a prefix of it, segment by segment."""
    if len(pattern) > len(path):
        return False
    for want, have in zip(pattern, path, strict=False):
        if want != have and want != ANY:
            return False
    return True


Rule = tuple[Path, tuple[str, ...]]
"""A pattern and its actions, in alphabetical order."""


# A process holds millions of rules. Most are equal to a few others, and the rest share a few sets of actions.
@lru_cache(maxsize=4096)
def _rule(grant: Grant) -> Rule:
    segments = grant.resource.split("/")
    # Few names of collections occur, and many ids.
    segments[::2] = map(intern, segments[::2])
    return tuple(segments), _actions(grant.actions)


@lru_cache(maxsize=4096)
def _actions(actions: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(intern, sorted(set(actions))))


@dataclass(frozen=True, slots=True)
class GrantSet:
    """Grants, compiled for decisions. Their order does not matter, and each grant only allows more."""

    rules: tuple[Rule, ...]

    @classmethod
    def of(cls, grants: Iterable[Grant]) -> "GrantSet":
        """Return the set of grants whose form was validated."""
        return cls(tuple(map(_rule, grants)))

    def allows(self, path: Path, action: str) -> bool:
        """Whether some grant covers the path and gives the action."""
        for pattern, actions in self.rules:
            if (action in actions or ANY in actions) and covers(pattern, path):
                return True
        return False

    def allows_somewhere(self, pattern: Path, action: str) -> bool:
        """Whether some grant gives the action on some path of the pattern."""
        return any(
            (action in actions or ANY in actions)
            and len(given) <= len(pattern)
            and all(ANY in (one, other) or one == other for one, other in zip(given, pattern, strict=False))
            for given, actions in self.rules
        )

    def grants(self) -> tuple[Grant, ...]:
        """The grants of the set."""
        return tuple(Grant("/".join(pattern), actions) for pattern, actions in self.rules)

    def contains(self, other: "GrantSet") -> bool:
        """Whether this set surely allows everything that `other` allows."""
        return self.lacks(other) is None

    def lacks(self, other: "GrantSet") -> Permission | None:
        """Return the first permission that `other` gives and this set may lack; None where it lacks none.

        Each action of each grant must lie inside one grant of this set. Coverage by several grants together is not
        recognised, so an error is always on the side of "lacks".
        """
        index = self.indexed()
        for pattern, actions in other.rules:
            covering = index.covering(pattern)
            for action in actions:
                if not covering & index.giving(action):
                    return Permission("/".join(pattern), action)
        return None

    def indexed(self) -> "GrantIndex":
        """Return the index of the set, for many decisions."""
        return GrantIndex(self.rules)

    def touches(self, path: Path) -> bool:
        """Whether some grant covers the path, an ancestor of it, or something below it."""
        return any(
            all(want in (ANY, have) for want, have in zip(pattern, path, strict=False)) for pattern, _ in self.rules
        )


class GrantIndex:
    """Rules as bits, so that the cost of a decision depends on the length of the path, not on the number of rules."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        deepest = max((len(pattern) for pattern, _ in rules), default=0)
        self._fits = [0] * (deepest + 1)  # by length: patterns that are no longer
        self._open = [0] * deepest  # by depth: patterns with `*` there, or that end before
        self._literal: list[dict[str, int]] = [{} for _ in range(deepest)]
        self._giving: dict[str, int] = {}
        for number, (pattern, actions) in enumerate(rules):
            self._add(1 << number, pattern, actions)

    def _add(self, bit: int, pattern: Path, actions: Sequence[str]) -> None:
        for length in range(len(pattern), len(self._fits)):
            self._fits[length] |= bit
        for depth in range(len(self._open)):
            if depth >= len(pattern) or pattern[depth] == ANY:
                self._open[depth] |= bit
            else:
                at = self._literal[depth]
                at[pattern[depth]] = at.get(pattern[depth], 0) | bit
        for action in actions:
            self._giving[action] = self._giving.get(action, 0) | bit

    def covering(self, path: Path) -> int:
        """Return the rules that cover a path, or a whole pattern, whose wildcards only wildcards match."""
        found = self._fits[min(len(path), len(self._fits) - 1)]
        for segment, open_, literal in zip(path, self._open, self._literal, strict=False):
            found &= open_ | literal.get(segment, 0)
        return found

    def giving(self, action: str) -> int:
        """Return the rules that give an action."""
        return self._giving.get(action, 0) | self._giving.get(ANY, 0)


def without_repetitions(grants: Iterable[Grant]) -> tuple[Grant, ...]:
    """Return the same grants in the same order, with each action of a resource once."""
    seen: dict[str, set[str]] = {}
    kept = []
    for grant in grants:
        known = seen.setdefault(grant.resource, set())
        actions = tuple(action for action in dict.fromkeys(grant.actions) if action not in known)
        known.update(actions)
        if actions:
            kept.append(Grant(grant.resource, actions))
    return tuple(kept)


def in_words(grants: GrantSet) -> str:
    """Return the first grants of a set for people: `links: read, write; tags: read`."""
    shown = [f"`{'/'.join(pattern)}`: {', '.join(actions)}" for pattern, actions in grants.rules[:_SHOWN_GRANTS]]
    text = "; ".join(shown) or "nothing"
    if len(text) > _SHOWN_CHARS:
        return f"{text[:_SHOWN_CHARS]}…"
    return text if len(shown) == len(grants.rules) else f"{text}; and more"


EVERYTHING = GrantSet.of([Grant(ANY, (ANY,))])
NOTHING = GrantSet(())
