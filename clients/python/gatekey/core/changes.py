"""What has changed, as one process hears it from the database, and a client from a process."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from gatekey.core.secrets import Digest

_NOTHING = uuid.UUID(int=0)


@dataclass(frozen=True, slots=True)
class ScopeChange:
    """A scope in which something changed at a revision. What is None widens it; all None is everything."""

    revision: int
    product: str | None
    tenant_uid: int | None
    principal_uid: int | None
    key_uid: uuid.UUID | None
    digest: Digest | None
    stamp: uuid.UUID = _NOTHING
    """Of the revision."""
    tenant_product: str | None = None
    """Where the tenant is; None where there is no tenant, or it is gone."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the database's history."""

    revision: int
    stamp: uuid.UUID


@dataclass(frozen=True, slots=True)
class Commit:
    """Where in the history a transaction stands that was, or is about to be, committed."""

    position: Position
    is_after_fork: bool
    """Whether processes may still serve from a history that this one was copied from: a dump was restored a moment
    ago. They need not be registered here."""


NOWHERE = Position(-1, _NOTHING)
"""Where a process is that has applied nothing yet."""


@dataclass(frozen=True, slots=True)
class Poll:
    """What one poll found, as of one snapshot."""

    head: Position
    registered: bool
    """Whether the process is one that mutations wait for; if not, it must not answer from its cache."""
    changes: Sequence[ScopeChange] | None
    """What changed since the position that was asked from; None where that cannot be said."""
    server: datetime
    """When the database's server was started, by which it is told from others."""
    scope_key: uuid.UUID = _NOTHING
    """With which scopes are given names for clients."""
