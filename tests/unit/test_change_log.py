"""What a process tells its clients of changes."""

import itertools
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from gatekey.core.changes import NOWHERE, Poll, Position, ScopeChange
from gatekey.core.scopes import ScopePseudonyms
from gatekey.core.secrets import Digest
from gatekey_server.freshness import change_log as module
from gatekey_server.freshness.change_log import ChangeLog

SERVER = datetime(2026, 1, 1, tzinfo=UTC)


def stamp(revision: int, history: int = 0) -> uuid.UUID:
    """The stamp of a revision in one of several histories."""
    return uuid.UUID(int=history << 64 | revision + 1)


def position(revision: int, history: int = 0) -> Position:
    """A place in a history."""
    return Position(revision, stamp(revision, history))


def poll(head: int, revisions: Sequence[int] | None, history: int = 0) -> Poll:
    """A poll that found a change at each of some revisions."""
    changes = [ScopeChange(r, "heyoo", None, None, None, None, stamp(r, history)) for r in revisions or ()]
    return Poll(position(head, history), True, None if revisions is None else changes, SERVER)


def started(head: int = 10) -> ChangeLog:
    """A log that begins at a revision."""
    log = ChangeLog()
    log.add(poll(head, None), is_continuous=False)
    return log


def told(log: ChangeLog, asked: Position) -> list[int] | None:
    """The revisions of the changes since a position."""
    changes = log.since(asked)
    return None if changes is None else [change.revision for change in changes]


def test_a_client_is_told_what_it_has_missed() -> None:
    log = started(10)
    log.add(poll(13, [11, 11, 12, 13]), is_continuous=True)
    log.add(poll(14, [14]), is_continuous=True)
    assert told(log, position(10)) == [11, 11, 12, 13, 14]
    # Another process may have polled in between: each revision is a place to go on from.
    assert told(log, position(11)) == [12, 13, 14]
    assert told(log, position(14)) == []


def test_what_is_not_of_this_history_is_not_gone_on_from() -> None:
    log = started(10)
    log.add(poll(12, [11, 12]), is_continuous=True)
    for asked in (NOWHERE, position(9), position(11, history=1), position(13)):
        assert told(log, asked) is None
    log.add(poll(11, None, history=1), is_continuous=False)
    assert told(log, position(11)) is None
    assert told(log, position(11, history=1)) == []


def test_only_so_much_is_kept_and_never_a_part_of_a_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LOGGED_CHANGES", 10)
    log, happened = started(0), [0]
    for revision, count in zip(range(1, 100), itertools.cycle([1, 4, 2, 9]), strict=False):
        log.add(poll(revision, [revision] * count), is_continuous=True)
        happened += [revision] * count
        assert len(log._changes) <= 10 + count
        for asked in range(revision + 1):
            assert told(log, position(asked)) in (None, [each for each in happened if each > asked])
        assert told(log, position(revision)) == []
        assert len(log._stamps) <= 12


def test_only_so_much_is_told_at_once() -> None:
    log, many = started(0), module.MAX_TOLD_CHANGES + 1
    log.add(poll(many, list(range(1, many + 1))), is_continuous=True)
    assert told(log, position(0)) is None
    assert told(log, position(1)) == list(range(2, many + 1))


def test_names_of_scopes_are_the_same_for_all_servers_and_different_for_all_scopes() -> None:
    key, uid = uuid.UUID(int=1), uuid.UUID(int=7)
    names, others = ScopePseudonyms(key), ScopePseudonyms(uuid.UUID(int=2))
    assert names.tenant(7) == ScopePseudonyms(key).tenant(7)
    assert len({names.tenant(7), names.tenant(8), names.principal(7), others.tenant(7)}) == 4
    digest = Digest(uid.bytes)
    assert len({names.key(uid), names.secret(digest), others.key(uid)}) == 3
    assert names.server(SERVER) != others.server(SERVER)
