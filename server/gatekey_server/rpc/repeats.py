"""Requests that are asked again, byte by byte: what was found out about them the first times.

Nothing here is an answer. What is remembered of a request is what it asks, which snapshots it was
decided by, and what was said; it is said again only while the cache yields those very snapshots, which
never change themselves, and before any of them expires.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar

from gatekey.core.decisions import KeySnapshot
from gatekey.core.secrets import Secret
from gatekey.v1 import check_service_pb2 as pb

from gatekey_server.authorization.callers import Caller
from gatekey_server.background.uses import UsageRecorder
from gatekey_server.commands.checks import CheckResult, Question
from gatekey_server.freshness.snapshot_source import SnapshotSource, VersionedSnapshot

V = TypeVar("V")

MAX_REQUESTS = 131_072
"""How many requests are remembered, at most."""


class Repeat(NamedTuple):
    """What is remembered of a request."""

    token: Secret
    caller: KeySnapshot
    key: Secret
    snapshot: KeySnapshot | None
    """What the decision was made from; None where there was no such key."""
    min_revision: int
    is_seen: bool
    """Whether the caller may know of the key."""
    expire_time: datetime | None
    """When the first of the two snapshots expires."""
    told_snapshot: KeySnapshot | None
    """The snapshot that the caller was told, and that was thereby used; None for a denial."""
    answer: bytes
    """The answer, but for its revision."""

    def holds(self, asking: VersionedSnapshot, known: VersionedSnapshot, now: datetime) -> bool:
        """Whether what was said is to be said again, by what is known of the token and of the key now."""
        return (
            asking.snapshot is self.caller
            and known.snapshot is self.snapshot
            and known.revision >= self.min_revision
            and (self.expire_time is None or now < self.expire_time)
        )


class Repeats:
    """Says again what was said. Requests are known by a keyed hash of all that came with them: no secret is kept.

    Args:
        snapshots: where the snapshots come from that must still be the same.
        usage: where it is noted that keys were used.
        write: makes an answer without its revision, serialized.
    """

    def __init__(self, snapshots: SnapshotSource, usage: UsageRecorder, write: Callable[[CheckResult], bytes]) -> None:
        self._snapshots = snapshots
        self._usage = usage
        self._write = write
        self._hash_key = os.urandom(32)
        self._known = Recent[Repeat](MAX_REQUESTS)
        self._seen = Recent[bool](MAX_REQUESTS)

    def names(self, authorization: str) -> Callable[[bytes], bytes]:
        """What requests of one caller are known by: everything that an answer can depend on, but snapshots and time."""
        text = authorization.encode()
        # With its length, so that no two pairs are one text.
        begun = hashlib.blake2b(b"%d %b" % (len(text), text), digest_size=16, key=self._hash_key)

        def name(data: bytes) -> bytes:
            whole = begun.copy()
            whole.update(data)
            return whole.digest()

        return name

    def say_again(self, names: Iterable[bytes], now: datetime) -> list[bytes] | None:
        """The answers to requests of one caller, serialized; None where one of them must be decided anew."""
        asking = known = key = None
        ending, revision, answers, used = b"", 0, list[bytes](), dict[int, KeySnapshot]()
        for name in names:
            repeat = self._known.get(name)
            if repeat is None:
                return None
            if asking is None:
                asking = self._snapshots.recall(repeat.token)
            # Neighbours are often about one key.
            if repeat.key != key:
                key, known = repeat.key, self._snapshots.recall(repeat.key)
                if asking is None or known is None:
                    return None
                revision = min(asking.revision, known.revision)
                ending = _write_revision(revision)
            if asking is None or known is None or not repeat.holds(asking, known, now):
                return None
            if repeat.told_snapshot is not None:
                used[id(repeat.told_snapshot)] = repeat.told_snapshot
            if not repeat.is_seen:
                # As `callers.as_seen`.
                answers.append(
                    repeat.answer + _write_revision(min(revision, max(self._snapshots.applied, repeat.min_revision)))
                )
                continue
            answers.append(repeat.answer + ending)
        if asking is not None and asking.snapshot is not None:
            for snapshot in (asking.snapshot, *used.values()):
                self._usage.record(snapshot, now)
        return answers

    def remember(
        self,
        name: bytes,
        token: Secret,
        caller: Caller,
        question: Question,
        result: CheckResult,
    ) -> None:
        """Remember what was just found out, if the request has come before: most never come again."""
        if not self._seen.get(name):
            self._seen.put(name, True)
            return
        known = self._snapshots.recall(question.key)
        if known is None:
            return
        times = (caller.snapshot.expire_time, known.snapshot.expire_time if known.snapshot else None)
        self._known.put(
            name,
            Repeat(
                token,
                caller.snapshot,
                question.key,
                known.snapshot,
                question.min_revision,
                known.snapshot is not None and caller.may_check(known.snapshot.product),
                min((time for time in times if time is not None), default=None),
                result.snapshot if result.decision.allowed else None,
                self._write(result),
            ),
        )


@lru_cache(maxsize=64)
def _write_revision(revision: int) -> bytes:
    """The field that an answer ends with: the fields of a message may come one by one."""
    return pb.CheckResponse(revision=revision).SerializeToString()


class Recent(Generic[V]):
    """What was put or got of late, up to a number of things."""

    def __init__(self, most: int) -> None:
        self._half = most // 2
        self._young: dict[bytes, V] = {}
        self._old: dict[bytes, V] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, name: bytes) -> V | None:
        value = self._young.get(name)
        if value is None:
            value = self._old.pop(name, None)
            if value is not None:
                self.put(name, value)
        return value

    def put(self, name: bytes, value: V) -> None:
        if len(self._young) >= self._half:
            self._young, self._old = {}, self._young
        self._young[name] = value
