"""What the cache holds of one key, and what a server tells about one secret."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf
from typing import Final

from gatekey.core import decisions as core
from gatekey.core.names import ApiKeyName, TenantName
from gatekey.core.secrets import Digest
from gatekey.decisions import Decision

_NEVER: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, eq=False)
class CachedSnapshot(core.KeySnapshot):
    """A key snapshot, and the decisions that were made by it. Compared and hashed by identity."""

    until: float = inf
    """By `clock`, in seconds: from then on the key may have expired, and only the server decides."""
    judged_at: datetime = _NEVER
    """When the server sent it, by the server's clock. Decisions are made as of this time, and hold until `until`."""
    decisions: dict[core.Reason, Decision] = field(default_factory=dict)
    """One decision for each reason that names no missing permission."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def tenant_name(self) -> TenantName:
        """The resource name of the key's tenant."""
        return TenantName(self.product, self.tenant)

    @property
    def key_name(self) -> str:
        """The resource name of the key."""
        return str(ApiKeyName(self.tenant_name, self.key_id))


@dataclass(frozen=True, slots=True)
class ResolvedSecret:
    """What one secret stands for at a revision."""

    digest: bytes
    """SHA-256 of the secret, by which this process finds it."""
    revision: int
    snapshot: CachedSnapshot | None
    """None: there is no such secret."""
    scopes: tuple[Digest, ...] = ()
    """For a secret that does not exist: a change of one of these scopes may create it."""
