"""Requests that are asked again, byte by byte: what was found out about them the first time.

Nothing here is an answer. What is remembered of a request is what it asks, which facts it was
decided by, and what was said; it is said again only while the cache yields those very facts, which
never change themselves, and before any of them expires.
"""

import hashlib
import os
from datetime import datetime
from typing import NamedTuple

from gatekey_server.domain.decisions import Fact
from gatekey_server.freshness.facts import Secret

MAX_REQUESTS = 131_072
"""How many requests are remembered, at most."""


class Repeat(NamedTuple):
    """What is remembered of a request."""

    token: Secret
    caller: Fact
    key: Secret
    fact: Fact | None
    """What the decision was made from; None where there was no such key."""
    min_revision: int
    expire_time: datetime | None
    """When the first of the two facts expires."""
    told_fact: Fact | None
    """The fact that the caller was told, and that was thereby used; None for a denial."""
    answer: bytes
    """The answer, but for its revision."""


class Repeats:
    """Remembers requests by a keyed hash of all that came with them, so that no secret is kept."""

    def __init__(self) -> None:
        self._hash_key = os.urandom(32)
        self._young: dict[bytes, Repeat] = {}
        self._old: dict[bytes, Repeat] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def name(self, authorization: str, data: bytes) -> bytes:
        """What a request is known by: everything that its answer can depend on, but the facts and the time."""
        text = authorization.encode()
        # With its length, so that no two pairs are one text.
        return hashlib.blake2b(b"%d %b%b" % (len(text), text, data), digest_size=16, key=self._hash_key).digest()

    def get(self, name: bytes) -> Repeat | None:
        """What is remembered of a request."""
        repeat = self._young.get(name)
        if repeat is None and name in self._old:
            repeat = self._young[name] = self._old.pop(name)
        return repeat

    def put(self, name: bytes, repeat: Repeat) -> None:
        """Remember a request; those that were not asked again for long are forgotten."""
        if len(self._young) >= MAX_REQUESTS // 2:
            self._young, self._old = {}, self._young
        self._young[name] = repeat
