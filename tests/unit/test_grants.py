"""Patterns, paths and sets of grants: small examples. At length: test_decision_properties.py."""

import pytest
from gatekey.core.errors import InvalidRequest
from gatekey.core.grants import (
    EVERYTHING,
    NOTHING,
    Grant,
    GrantSet,
    covers,
    parse_action,
    parse_path,
    parse_pattern,
)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*", "links", True),
        ("*", "domains/a/links/b", True),
        ("links", "links", True),
        ("links", "links/abc", True),
        ("links", "links/abc/clicks", True),
        ("links", "linksx", False),
        ("links", "link", False),
        ("links", "Links", False),
        ("links", "domains/links", False),
        ("links/abc", "links/abc", True),
        ("links/abc", "links", False),
        ("links/abc", "links/abcd", False),
        ("links/abc", "links/ab", False),
        ("links/*", "links/abc", True),
        ("links/*", "links", False),
        ("domains/*/links", "domains/a/links", True),
        ("domains/*/links", "domains/a/links/b", True),
        ("domains/*/links", "domains/a/b", False),
        ("domains/*/links", "domains/a", False),
        ("domains/*/links", "domains/a/b/links", False),
        ("*/abc", "links/abc", True),
        ("*/abc", "links/xyz", False),
        ("a.c", "abc", False),
    ],
)
def test_covers(pattern: str, path: str, expected: bool) -> None:
    """A pattern covers a path if it matches the path or a prefix of it, segment by segment."""
    assert covers(tuple(pattern.split("/")), tuple(path.split("/"))) == expected


READ, WRITE = ("read",), ("write",)


@pytest.mark.parametrize(
    ("wide", "narrow", "expected"),
    [
        ([("*", ("*",))], [("*", ("*",))], True),
        ([("*", ("*",))], [("links/*", READ)], True),
        ([("*", READ)], [("*", ("*",))], False),
        ([("*", ("*",))], [], True),
        ([], [], True),
        ([], [("links", READ)], False),
        ([("links", READ)], [("links/abc", READ)], True),
        ([("links", READ)], [("links/*", READ)], True),
        ([("links/*", READ)], [("links/abc", READ)], True),
        ([("links/*", READ)], [("links", READ)], False),
        ([("links/abc", READ)], [("links/*", READ)], False),
        ([("domains/*/links", READ)], [("domains/a/links/b", READ)], True),
        ([("domains/a/links", READ)], [("domains/*/links", READ)], False),
        ([("links", READ)], [("*", READ)], False),
        ([("links", READ)], [("linksx", READ)], False),
        ([("links", READ)], [("links", ("read", "write"))], False),
        ([("links", READ), ("links", WRITE)], [("links", ("read", "write"))], True),
        ([("links", READ), ("links/abc", WRITE)], [("links", ("read", "write"))], False),
        ([("links", ("*",))], [("links", ("read", "write", "*"))], True),
        ([("links", ("read", "write"))], [("links", ("*",))], False),
        ([("links", READ)], [("links", READ), ("pages", READ)], False),
    ],
)
def test_contains(
    wide: list[tuple[str, tuple[str, ...]]], narrow: list[tuple[str, tuple[str, ...]]], expected: bool
) -> None:
    """Each action of each grant must lie inside one grant."""
    assert _set(wide).contains(_set(narrow)) == expected


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*", "products/heyoo", True),
        ("products", "products/heyoo", True),
        ("products/heyoo", "products/heyoo", True),
        ("products/*/checks", "products/heyoo", True),
        ("products/heyoo/tenants/t1", "products/heyoo", True),
        ("products/heyo", "products/heyoo", False),
        ("products/bitsy", "products/heyoo", False),
        ("products/bitsy/tenants/t1", "products/heyoo", False),
        ("heyoo", "products/heyoo", False),
    ],
)
def test_touches(pattern: str, path: str, expected: bool) -> None:
    """A set touches what it covers, and whatever it covers something below of."""
    assert _set([(pattern, READ)]).touches(tuple(path.split("/"))) == expected


def test_everything_and_nothing() -> None:
    """The two ends of what can be granted."""
    assert EVERYTHING.allows(("links", "abc"), "read")
    assert not NOTHING.allows(("links",), "read")
    assert not NOTHING.touches(("links",))


def test_grants_do_not_lend_each_other_actions() -> None:
    """An action holds where its own grant says."""
    grants = _set([("links/abc", READ), ("links", WRITE)])
    assert grants.allows(("links", "abc"), "read")
    assert grants.allows(("links", "abc"), "write")
    assert not grants.allows(("links", "xyz"), "read")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "RESOURCE_REQUIRED"),
        ("a" * 1025, "RESOURCE_TOO_LONG"),
        ("/".join("a" * 17), "RESOURCE_TOO_LONG"),
        ("a" * 257, "RESOURCE_INVALID"),
        ("links/", "RESOURCE_INVALID"),
        ("/links", "RESOURCE_INVALID"),
        ("links//abc", "RESOURCE_INVALID"),
        ("links/.", "RESOURCE_INVALID"),
        ("links/..", "RESOURCE_INVALID"),
        ("links/a*", "RESOURCE_INVALID"),
        ("links/**", "RESOURCE_INVALID"),
        ("links/a b", "RESOURCE_INVALID"),
        ("links/é", "RESOURCE_INVALID"),
        ("links\n", "RESOURCE_INVALID"),
    ],
)
def test_neither_path_nor_pattern(text: str, reason: str) -> None:
    """What is malformed is refused for the same reason in both."""
    for parse in (parse_path, parse_pattern):
        with pytest.raises(InvalidRequest) as refusal:
            parse(text, "where.resource")
        assert [(v.field, v.reason) for v in refusal.value.violations] == [("where.resource", reason)]


@pytest.mark.parametrize("text", ["*", "links/*", "*/*", "domains/*/links"])
def test_wildcards_are_for_patterns(text: str) -> None:
    """A path names one resource."""
    assert parse_pattern(text, "resource") == tuple(text.split("/"))
    with pytest.raises(InvalidRequest) as refusal:
        parse_path(text, "resource")
    assert refusal.value.reason == "RESOURCE_INVALID"


def test_wildcard_action_is_for_grants() -> None:
    """Nobody asks whether everything is allowed."""
    assert parse_action("*", "action", wildcard=True) == "*"
    with pytest.raises(InvalidRequest) as refusal:
        parse_action("*", "action")
    assert refusal.value.reason == "ACTION_INVALID"


def _set(grants: list[tuple[str, tuple[str, ...]]]) -> GrantSet:
    return GrantSet.of(Grant(resource, actions) for resource, actions in grants)


@pytest.mark.parametrize(
    ("resource", "actions", "allows"),
    [
        ("*", ("*",), True),
        ("products", ("create",), True),
        ("products/heyoo", ("*",), True),
        ("products/heyoo/checks", ("create",), True),
        ("products/*/checks", ("create",), True),
        ("*/*/checks", ("create",), True),
        ("products/heyoo/checks", ("list",), False),
        ("products/heyoo/tenants", ("create",), False),
        ("products/heyoo/checks/one", ("create",), False),
        ("tenants", ("create",), False),
    ],
)
def test_whether_some_path_of_a_pattern_is_allowed(resource: str, actions: tuple[str, ...], allows: bool) -> None:
    given = GrantSet.of([Grant(resource, actions)])
    assert given.allows_somewhere(("products", "*", "checks"), "create") == allows
