"""Uses of keys on their way into the database."""

import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from gatekey.core.decisions import KeySnapshot
from gatekey_server.background import uses
from gatekey_server.background.uses import UsageRecorder
from gatekey_server.store import api_keys

NOW = datetime(2026, 1, 1, tzinfo=UTC)
_BATCH = 3


class Database:
    """Stands in for one: remembers what is written into it, batch by batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.meanwhile: Callable[[], None] = lambda: None


async def record_uses(database: Database, uses: Mapping[tuple[int, uuid.UUID], datetime]) -> None:
    database.batches.append([tenant for tenant, _ in uses])
    database.meanwhile()


def snapshot(number: int, *, was_used: bool = True) -> KeySnapshot:
    return cast("KeySnapshot", SimpleNamespace(uid=(number, uuid.UUID(int=number)), was_used=was_used))


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Database:
    monkeypatch.setattr(api_keys, "record_uses", record_uses)
    monkeypatch.setattr(uses, "_BATCH", _BATCH)
    return Database()


def recorder_of(database: Database, *numbers: int) -> UsageRecorder:
    recorder = UsageRecorder(cast("Any", database), 60)
    for number in numbers:
        recorder.record(snapshot(number), NOW)
    return recorder


async def test_first_uses_go_first(database: Database) -> None:
    recorder = recorder_of(database, 1, 2, 3)
    recorder.record(snapshot(4, was_used=False), NOW)
    await recorder.flush()
    assert database.batches == [[4, 1, 2], [3]]


async def test_a_first_use_does_not_wait_for_all_the_others(database: Database) -> None:
    recorder = recorder_of(database, *range(9))

    def use_for_the_first_time() -> None:
        if len(database.batches) == 1:
            recorder.record(snapshot(99, was_used=False), NOW)

    database.meanwhile = use_for_the_first_time
    await recorder.flush(gently=True)
    assert database.batches == [[0, 1, 2]]
    await recorder.flush()
    assert database.batches[1:] == [[99, 3, 4], [5, 6, 7], [8]]


async def test_a_process_that_was_stopped_does_not_rest_for_as_long(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = iter(range(0, 100_000, 3600))
    monkeypatch.setattr(uses, "clock", SimpleNamespace(now=lambda: float(next(passed))))
    await recorder_of(database, *range(9)).flush(gently=True)
    assert [len(batch) for batch in database.batches] == [3, 3, 3]
