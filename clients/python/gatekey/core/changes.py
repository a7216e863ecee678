"""Changes, as a process receives them from the database and a client from a process."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from gatekey.core.secrets import Digest

_NOTHING = uuid.UUID(int=0)


@dataclass(frozen=True, slots=True)
class ScopeChange:
    """A scope in which something changed at a revision. Each None widens it; all None stands for everything."""

    revision: int
    product: str | None
    tenant_uid: int | None
    principal_uid: int | None
    key_uid: uuid.UUID | None
    digest: Digest | None
    stamp: uuid.UUID = _NOTHING
    """The stamp of the revision."""
    tenant_product: str | None = None
    """The product of the tenant; None where there is no tenant, or it was deleted."""


@dataclass(frozen=True, slots=True)
class Position:
    """A position in the database's history: a revision, and the stamp that tells histories apart."""

    revision: int
    stamp: uuid.UUID


@dataclass(frozen=True, slots=True)
class Commit:
    """The position of a transaction that was committed, or is about to be."""

    position: Position
    is_after_fork: bool
    """Whether processes may still serve from the history that this one was copied from, because a dump was restored a
    moment ago. They may not be registered here."""


NOWHERE = Position(-1, _NOTHING)
"""The position of a process that has applied nothing yet."""


@dataclass(frozen=True, slots=True)
class Poll:
    """The result of one poll, as of one snapshot of the database."""

    head: Position
    registered: bool
    """Whether mutations wait for the process. If not, it must not decide from its cache."""
    changes: Sequence[ScopeChange] | None
    """The changes since the requested position; None where they are not known."""
    server: datetime
    """The start time of the database server, which identifies it."""
    scope_key: uuid.UUID = _NOTHING
    """The key of the pseudonyms of scopes."""
