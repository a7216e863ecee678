"""No name that was replaced comes back, in code, documents or logs. To be removed once the list is old.

The names are in `docs/glossary.md`. Some old names are ordinary words elsewhere: they are banned only where they were.
"""

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.support.server import ROOT

ALL = ("*",)
CODE = ("*.py", "*.pyi", "*.go", "*.ts", "*.sql", "*.proto")
PYTHON = ("server/*.py", "clients/python/*.py", "tests/*.py", "bench/*.py")
PACKAGES = ("server/*.py", "clients/python/*.py")
SERVER = ("server/*.py",)
CLIENT = ("clients/python/*.py", "clients/python/*.md")

# What was replaced: a pattern, where it is banned, and what stands for it now.
BANNED: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (r"\bFact(?:s|Source|Cache)?\b|\bfacts\b|fact_(?:source|cache)", ALL, "KeySnapshot, SnapshotSource, SnapshotCache"),
    (r"\bKnown\b", PACKAGES, "VersionedSnapshot"),
    (r"\bWanted\b", PACKAGES, "LookupRequest"),
    (r"\bLoaded\b", PACKAGES, "LoadResult"),
    (r"(?:class |\b)Policy\(|: Policy\b|import Policy\b", PYTHON, "CompiledSpec"),
    (r"class History\b|\bHistory\(|freshness[./]history", PACKAGES, "InvalidationIndex"),
    (r"def holds\b|\.holds\(", PACKAGES, "is_current"),
    (r"\blapse\b", PACKAGES, "on_lease_gap"),
    (r"\bFeed(?:Link)?\b|\bfeed\.\w|freshness[./]feed", ALL, "ChangePoller, ChangeConnection"),
    (r"freshness[./]log\b", ALL, "freshness/change_log"),
    (
        r"class Receipts\b|\bReceipts\(|\bReceiptBook\b|freshness[./]receipts",
        ALL,
        "PropagationBarrier, PropagationRecorder",
    ),
    (r"def settle\b|\.settle\(", PACKAGES, "wait_until_visible"),
    (r"class Place\b|\bPlace\(|audit\.Place\b", PACKAGES, "AuditPosition"),
    (r"\bdespair\b", CODE, "fail_waiters"),
    (r"\bis_hopeless\b", CODE, "is_failing"),
    (r"\bgive_up\b", PACKAGES, "release"),
    (r"def doubt\b|\.doubt\(", PACKAGES, "demote_current_host"),
    (r"(?:mutations|changes)\.Change\b|class Change\b", PYTHON, "MutationOutcome, ScopeChange"),
    (r"\b_Held\b|\b_hold\(", SERVER, "LockedKey, _lock_key"),
    (r"\b_LATER\b|\b_tried_again\b", SERVER, "_TRANSIENT_ERRORS, _with_retries"),
    (r"\bSURELY_OVER_S\b", ALL, "MAX_REMOTE_LEASE_S"),
    (r"\b_PATIENCE_S\b", ALL, "LEASE_WAIT_S"),
    (r"(?:commands|store|services|wire|rpc)[./]people\b", ALL, "principals"),
    (r"\bScopeNames\b", ALL, "ScopePseudonyms"),
    (r"rpc[./]edge\b|class Edge\b|\bEdge\(", ALL, "rpc/dispatcher, Dispatcher"),
    (r"\bIncoming\b", PYTHON, "RequestContext"),
    (r"class Reply\b|\bReply\(", PYTHON, "Response"),
    (r"class Parts\b|\bParts\(", PYTHON, "ServerDependencies"),
    (r"(?:rpc|wire)[./]values\b|import values\b", ALL, "wire/conversions"),
    (r"overload\.Queue\b|class Queue\b", PYTHON, "LoadShedder"),
    (r"\bnode\.answer\b|def answer\(settings", PACKAGES, "node.serve"),
    (r"\b_for_ever\b|\b_keep_up\b|\b_spare_the_cache\b", PACKAGES, "_supervise, _run_maintenance, _tune_gc"),
    (r"runtime[./]workers\b|gatekey_server[./]workers\b", ALL, "runtime/supervisor"),
    (r"\bupkeep\b", ALL, "maintenance"),
    (r"\bremove_what_is_over\b|\bfind_used\b", CODE, "purge_expired, resolve_key_uids"),
    (r"\b_near\b|class Near\b|[Nn]ear.caches?\b", ALL, "_cache, LocalCache, client cache"),
    (r"\b_keeping\b|\bKeeper\b", ALL, "CacheRunner"),
    (r"gatekey[./]_guards\b|import _guards\b|\bNeed\(|class Need\b", ALL, "_protection, Requirement"),
    (r"\bRefusal\b", CLIENT, "AccessRefused"),
    (r"\badmitted\b", CLIENT, "ensure_allowed"),
    (r"\bundecided\b", CLIENT, "refusal_for"),
    (r"\b_forks\b", CLIENT, "_fork_hooks"),
    (r"\b_Trip\b|\b_Asker\b", PYTHON, "_InflightBatch, _Waiter"),
    (r"\b_?examined?\b", ALL, "validate"),
    (r"\bCallerDenied\b|\bCallFailed\b|\bUndecided\b", ALL, "PermissionDenied, ApiError, CheckFailed"),
    (r"\bmake arrows\b|^arrows:", ALL, "make lint-imports"),
    (r"\bdiseases?\b", ALL, "disabled_guards"),
    (r"tests[./]support[./]world\b|tests\.support import world\b", ALL, "tests/support/fixtures"),
    (r"gatekey_server[./]domain\b|gatekey_server import domain\b", ALL, "gatekey/core"),
)

# They stay until the second path of a check is deleted, and go with it.
EXCEPTIONS = {("def holds\\b|\\.holds\\(", "server/gatekey_server/rpc/repeats.py")}

SKIPPED = {"node_modules", "dist", "build", "__pycache__"}
PLACES = ("server", "clients", "protos", "tests", "bench", "docs", "examples", ".ci", ".github", ".devcontainer")
KINDS = {".py", ".pyi", ".go", ".ts", ".sql", ".proto", ".md", ".toml", ".yaml", ".yml", ".json", ".mako"}


def files() -> Iterator[tuple[str, str]]:
    """The path of everything that we wrote, and the path and the text together: a file may have an old name, too."""
    found = [path for place in PLACES for path in (ROOT / place).rglob("*") if path.suffix in KINDS]
    for path in (*found, *ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"):
        relative = path.relative_to(ROOT)
        if path != Path(__file__) and not SKIPPED & set(relative.parts):
            yield str(relative), f"{relative}\n{path.read_text()}"


TEXTS = dict(files())


def test_the_list_looks_at_everything() -> None:
    assert len(TEXTS) > 300
    for _, globs, _ in BANNED:
        assert any(fnmatch(path, glob) for path in TEXTS for glob in globs), globs


@pytest.mark.parametrize(("pattern", "globs", "now"), BANNED, ids=[now for _, _, now in BANNED])
def test_a_replaced_name_does_not_come_back(pattern: str, globs: tuple[str, ...], now: str) -> None:
    found = [
        f"{path}: {match[0]} is {now}"
        for path, text in TEXTS.items()
        if any(fnmatch(path, glob) for glob in globs) and (pattern, path) not in EXCEPTIONS
        for match in re.finditer(pattern, text, re.MULTILINE)
    ]
    assert found == []


def test_exceptions_are_needed() -> None:
    assert [each for each in EXCEPTIONS if not re.search(each[0], TEXTS.get(each[1], ""))] == []


# Examples of each, as they were once written: one for every alternative of a pattern.
OLD = """
arrows:
Fact; Facts; FactSource; FactCache; facts; fact_source; fact_cache; Known(; Wanted; Loaded; Policy(spec)
: Policy; import Policy; class Policy(; class History; History(; freshness/history; def holds
history.holds(entry); def lapse; Feed; FeedLink; feed.x; freshness/feed; freshness/log.py; class Receipts
Receipts(; ReceiptBook; freshness/receipts; def settle; .settle(; class Place; Place(; audit.Place; despair
is_hopeless; give_up; def doubt; .doubt(; mutations.Change; changes.Change; class Change; _Held; _hold(; _LATER
_tried_again; SURELY_OVER_S; _PATIENCE_S; commands/people.py; ScopeNames; rpc/edge.py; class Edge; Edge(
Incoming; class Reply; Reply(; class Parts; Parts(; rpc/values; import values; overload.Queue; class Queue
node.answer; def answer(settings; _for_ever; _keep_up; _spare_the_cache; runtime/workers.py
gatekey_server/workers; upkeep; remove_what_is_over; find_used; _near; class Near; near cache; _keeping; Keeper
gatekey/_guards; import _guards; Need(; class Need; Refusal; admitted; undecided; _forks; _Trip; _Asker; examine
CallerDenied; CallFailed; Undecided; make arrows; disease; tests/support/world.py
tests.support import world; gatekey_server.domain; gatekey_server import domain
"""


def alternatives(pattern: str) -> list[str]:
    """Return what a pattern finds, each by itself, as far as its alternatives stand at its top."""
    parts, depth, part = [], 0, ""
    for char in pattern:
        depth += (char == "(") - (char == ")")
        if char == "|" and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += char
    return [*parts, part]


@pytest.mark.parametrize("pattern", [each for pattern, _, _ in BANNED for each in alternatives(pattern)])
def test_every_pattern_finds_an_old_name(pattern: str) -> None:
    assert re.search(pattern, OLD, re.MULTILINE)
