"""What has changed, and which entries still hold."""

import itertools
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from gatekey.core import invalidation_index as module
from gatekey.core.changes import Poll, Position, ScopeChange
from gatekey.core.decisions import CompiledSpec, KeySnapshot
from gatekey.core.invalidation_index import InvalidationIndex
from gatekey.core.secrets import Digest
from gatekey.core.snapshot_cache import Entry

from tests.unit.test_cache import compiled, digest, snapshot

__all__ = ["compiled"]

STAMP = uuid.UUID(int=1)
SERVER = datetime(2026, 1, 1, tzinfo=UTC)
EVERYTHING = (None, None, None, None, None)


def poll(head: int, changes: Sequence[tuple[int, tuple[object, ...]]] | None) -> Poll:
    """A poll that found changes: the revision, and product, tenant, principal, key and digest."""
    found = None if changes is None else [ScopeChange(revision, *scope) for revision, scope in changes]  # type: ignore[arg-type]
    return Poll(Position(head, STAMP), True, found, SERVER)


def started(head: int = 10) -> InvalidationIndex:
    """A history that has just begun."""
    index = InvalidationIndex()
    assert not index.apply(poll(head, None))
    return index


def scopes_of(known: KeySnapshot, its_digest: Digest) -> dict[str, tuple[object, ...]]:
    """All that can change about a snapshot."""
    tenant_uid, key_uid = known.uid
    return {
        "key": (None, tenant_uid, None, key_uid, None),
        "secret": (None, tenant_uid, None, key_uid, its_digest),
        "principal": (None, tenant_uid, known.principal_uid, None, None),
        "tenant": (None, tenant_uid, None, None, None),
        "product": (known.product, None, None, None, None),
        "everything": EVERYTHING,
    }


@pytest.mark.parametrize("scope", ["key", "secret", "principal", "tenant", "product", "everything"])
def test_a_change_of_any_of_its_scopes_ends_an_entry_and_no_other(compiled: CompiledSpec, scope: str) -> None:
    index = started()
    known, other = snapshot(compiled, 1), snapshot(compiled, 2)
    entry, later = Entry(digest(1), known, 10, 0), Entry(digest(1), known, 11, 0)
    unconcerned = Entry(digest(2), other, 10, 0)
    assert index.apply(poll(11, [(11, scopes_of(known, digest(1))[scope])]))
    assert not index.is_current(entry)
    assert index.is_current(later), "it was read at that revision"
    assert index.is_current(unconcerned) == (scope not in ("product", "everything"))


def test_a_load_that_was_overtaken_is_refused(compiled: CompiledSpec) -> None:
    """The late fill: read before the change, put into the cache after it was applied."""
    index = started()
    known = snapshot(compiled, 1)
    index.apply(poll(11, [(11, scopes_of(known, digest(1))["key"])]))
    index.apply(poll(20, []))
    assert not index.is_current(Entry(digest(1), known, 10, 0))
    assert index.is_current(Entry(digest(1), known, 15, 0))


def test_what_is_newer_than_what_was_applied_holds_until_its_change(compiled: CompiledSpec) -> None:
    index = started()
    known = snapshot(compiled, 1)
    entry = Entry(digest(1), known, 13, 0)
    assert index.is_current(entry)
    index.apply(poll(12, [(11, scopes_of(known, digest(1))["key"])]))
    assert index.is_current(entry)
    index.apply(poll(14, [(14, scopes_of(known, digest(1))["tenant"])]))
    assert not index.is_current(entry)


@pytest.mark.parametrize(
    ("scope", "holds"),
    [
        ((None, 5, None, uuid.UUID(int=5), digest(1)), False),
        ((None, 5, None, uuid.UUID(int=5), digest(2)), True),
        ((None, 5, None, uuid.UUID(int=5), None), True),
        ((None, 5, 7, None, None), True),
        ((None, 5, None, None, None), False),
        (("bitsy", None, None, None, None), False),
        (EVERYTHING, False),
    ],
)
def test_that_there_is_no_such_secret_ends_where_there_may_be_one(scope: tuple[object, ...], holds: bool) -> None:
    index = started()
    unknown = Entry(digest(1), None, 10, 0)
    index.apply(poll(11, [(11, scope)]))
    assert index.is_current(unknown) == holds


def test_a_use_keeps_an_entry_while_the_past_is_forgotten(
    compiled: CompiledSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SCOPES", 10)
    index = started(0)
    used, unused = Entry(digest(1), snapshot(compiled, 1), 0, 0), Entry(digest(2), snapshot(compiled, 2), 0, 0)
    for revision in range(1, 100):
        index.apply(poll(revision, [(revision, (None, 9, None, uuid.UUID(int=1000 + revision), None))]))
        assert index.is_current(used)
        assert len(index._keys) <= 10
    # Nothing of it has changed, but that is not known any more.
    assert not index.is_current(unused)
    assert index.is_current(Entry(digest(3), snapshot(compiled, 3), 99, 0))


def test_forgetting_never_lets_an_entry_hold_that_does_not(
    compiled: CompiledSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SCOPES", 4)
    known = [snapshot(compiled, number) for number in range(8)]
    index, last = started(0), dict.fromkeys(range(8), 0)
    for revision, number in zip(range(1, 200), itertools.cycle([0, 1, 2, 3, 0, 4, 5, 6, 7, 7, 2]), strict=False):
        index.apply(poll(revision, [(revision, scopes_of(known[number], digest(number))["key"])]))
        last[number] = revision
        for other, since in itertools.product(range(8), range(max(0, revision - 20), revision + 1)):
            if index.is_current(Entry(digest(other), known[other], since, 0)):
                assert last[other] <= since


def test_a_history_that_goes_back_drops_everything(compiled: CompiledSpec) -> None:
    index = started(10)
    assert index.resets == 1
    assert index.apply(poll(12, []))
    assert not index.apply(poll(9, []))
    assert index.resets == 2
    assert index.applied.revision == 9
    assert not index.is_current(Entry(digest(1), snapshot(compiled, 1), 8, 0))


def test_a_history_that_is_not_continued_drops_everything(compiled: CompiledSpec) -> None:
    index = started(10)
    assert not index.apply(poll(12, None))
    assert not index.is_current(Entry(digest(1), snapshot(compiled, 1), 11, 0))


def test_what_was_loaded_and_not_applied_is_dropped_after_a_lapse_of_the_lease() -> None:
    index = started(10)
    assert index.keeps(10, STAMP)
    index.on_lease_gap()
    assert (index.lease_gaps, index.resets) == (1, 1), "all that is known was applied"
    assert index.keeps(11, STAMP)
    index.on_lease_gap()
    assert (index.lease_gaps, index.resets) == (2, 2)
    assert index.apply(poll(12, [])), "the history goes on"
    index.on_lease_gap()
    assert index.resets == 2


def test_what_was_loaded_from_another_history_is_dropped_with_its_number(compiled: CompiledSpec) -> None:
    other = uuid.UUID(int=2)
    index = started(10)
    assert not index.keeps(10, other), "another history is at the same number"
    assert index.includes(Position(10, STAMP))
    assert not index.includes(Position(10, other))
    assert not index.includes(Position(9, STAMP)), "nothing is known of what was before"
    # A load that is ahead of what was applied counts until the number is applied, and then only with its stamp.
    assert index.keeps(12, other)
    assert not index.keeps(12, STAMP), "two histories cannot both be right"
    entry = Entry(digest(1), snapshot(compiled, 1), 12, 0)
    assert index.apply(poll(11, [(11, ("q", None, None, None, None))]))
    assert index.is_current(entry)
    assert not index.apply(
        Poll(Position(12, STAMP), True, [ScopeChange(12, "q", None, None, None, None, STAMP)], SERVER)
    )
    assert index.resets == 2
    # Where only the number is known, it is believed.
    assert index.keeps(13, None)
    assert index.apply(poll(13, []))


def test_a_lapse_before_the_first_poll_drops_nothing() -> None:
    index = InvalidationIndex()
    assert index.keeps(10, STAMP)
    index.on_lease_gap()
    assert index.resets == 0
