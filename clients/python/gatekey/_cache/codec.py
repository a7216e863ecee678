"""Protobuf messages of `CacheService` on one side, values of `gatekey.core` and of the client on the other."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from math import inf
from typing import Final

from gatekey._cache.snapshot import CachedSnapshot, ResolvedSecret
from gatekey.core import clock
from gatekey.core import decisions as core
from gatekey.core.changes import Poll, Position, ScopeChange
from gatekey.core.decisions import CompiledSpec, Owner, PrincipalKind, Request
from gatekey.core.errors import InvalidRequest
from gatekey.core.grants import GrantSet, parse_action, parse_path
from gatekey.core.lease import LEASE_S, MAX_REMOTE_LEASE_S
from gatekey.core.names import MachineUserName, MemberName, parse_id
from gatekey.core.secrets import Digest
from gatekey.decisions import Decision, KeyKind, Permission, Reason
from gatekey.v1 import cache_service_pb2 as pb
from gatekey.wire.conversions import ACCESS_MODE, KEY_KIND, read_grants

_MAX_USE_AGE_S: Final = 86_400.0
# The same bound as the lease's: by how much the clocks of two machines may run apart.
_CLOCK_RATE: Final = MAX_REMOTE_LEASE_S / LEASE_S
_NO_STAMP: Final = uuid.UUID(int=0)
_NEVER: Final = datetime.min.replace(tzinfo=UTC)

_REASONS = {reason: Reason[reason.name] for reason in core.Reason}
_PRINCIPAL_NAMES = {PrincipalKind.MEMBER: MemberName, PrincipalKind.MACHINE_USER: MachineUserName}


# ---------------------------------------------------------------- questions and decisions


def read_question(resource: str, action: str, tenant: str | None, product: str | None) -> Request | None:
    """Return the question as the server reads it; None for an invalid one, which only the server refuses."""
    if not _is_valid(action, tenant, product):
        return None
    try:
        return Request(parse_path(resource, "resource"), action, tenant, product)
    except InvalidRequest:
        return None


@lru_cache(maxsize=4096)
def _is_valid(action: str, tenant: str | None, product: str | None) -> bool:
    """Return whether this is valid. Remembered, because many questions have it in common."""
    try:
        parse_action(action, "action")
        for id_, name in ((tenant, "tenant"), (product, "product")):
            if id_ is not None:
                parse_id(id_, name)
    except InvalidRequest:
        return False
    return True


def write_decision(decided: core.Decision, snapshot: CachedSnapshot | None, revision: int) -> Decision:
    """Return a decision of `decide` in the form that clients hand out, right as of a revision."""
    reason = _REASONS[decided.reason]
    if snapshot is None:
        return Decision(False, reason, decided.message(), revision=revision)
    missing, owner = decided.missing, snapshot.owner
    return Decision(
        decided.allowed,
        reason,
        decided.message(snapshot.compiled.tenant_noun),
        (Permission(missing.resource, missing.action),) if missing else (),
        snapshot.product,
        snapshot.tenant,
        str(_PRINCIPAL_NAMES[owner.kind](snapshot.tenant_name, owner.id)) if owner else "",
        snapshot.role or "",
        snapshot.key_name,
        KeyKind[snapshot.kind.name],
        snapshot.expire_time,
        revision,
    )


# ---------------------------------------------------------------- Sync


def read_poll(response: pb.SyncResponse) -> Poll:
    """Return the changes of a `Sync`, in the form in which a server hears of them from the database."""
    changes = None if response.reset else [_read_change(change) for change in response.changes]
    return Poll(Position(response.revision, _NO_STAMP), True, changes, _NEVER)


def read_lease_s(response: pb.SyncResponse) -> float:
    """Return how many seconds the lease lasts, from before the request was sent; never more than a server's lease."""
    return min(response.lease.ToMicroseconds() / 1e6, LEASE_S)


def _read_change(change: pb.ScopeChange) -> ScopeChange:
    return ScopeChange(
        change.revision,
        change.product or None,
        change.tenant if change.HasField("tenant") else None,
        change.principal if change.HasField("principal") else None,
        uuid.UUID(bytes=change.key) if change.key else None,
        Digest(change.secret) if change.secret else None,
    )


# ---------------------------------------------------------------- Resolve


def read_result(
    digest: bytes, result: pb.ResolveResult, specs: Mapping[bytes, CompiledSpec], asked_at: float, time: datetime
) -> ResolvedSecret | None:
    """Return what a secret stands for; None where the server told nothing that can be decided by.

    Args:
        digest: SHA-256 of the secret.
        result: the secret's part of the response.
        specs: the specs that are known, by the ids that servers give them.
        asked_at: a reading of `clock` before the request was sent.
        time: when the server responded, by its clock.
    """
    if result.unreadable:
        return None
    if not result.HasField("key"):
        return ResolvedSecret(digest, result.revision, None, tuple(map(Digest, result.secret_scopes)))
    compiled = specs.get(result.key.spec)
    if compiled is None:
        # The key did not fit into the response.
        return None
    return ResolvedSecret(digest, result.revision, _read_key(result.key, compiled, asked_at, time))


def _read_key(key: pb.ResolvedKey, compiled: CompiledSpec, asked_at: float, time: datetime) -> CachedSnapshot:
    kind = KEY_KIND.read(key.kind, "kind")
    if kind is None:
        raise ValueError("a key without a kind")
    expire_time = key.expire_time.ToDatetime(UTC) if key.HasField("expire_time") else None
    until = inf
    if expire_time is not None and expire_time > time:
        # The times of day of client and server may differ, so only spans are compared; rather too early than too late.
        until = asked_at + (expire_time - time).total_seconds() / _CLOCK_RATE
    owner = _read_owner(key.owner) if key.HasField("owner") else None
    return CachedSnapshot(
        compiled=compiled,
        tenant=key.tenant,
        tenant_suspended=key.tenant_suspended,
        tenant_deleted=key.tenant_deleted,
        key_id=key.api_key,
        kind=kind,
        mode=ACCESS_MODE.read(key.mode, "mode"),
        grants=GrantSet.of(read_grants(key.grants)),
        owner=owner,
        key_revoked=key.revoked,
        key_disabled=key.disabled,
        expire_time=expire_time,
        uid=(key.tenant_scope, uuid.UUID(bytes=key.key_scope)),
        principal_uid=key.owner.scope if owner else None,
        until=until,
        judged_at=time,
    )


def _read_owner(owner: pb.ResolvedOwner) -> Owner:
    if owner.WhichOneof("principal") == "machine_user":
        return Owner(PrincipalKind.MACHINE_USER, owner.machine_user, None)
    return Owner(PrincipalKind.MEMBER, owner.member, owner.role or None)


# ---------------------------------------------------------------- ReportUses


def write_uses(uses: Iterable[tuple[CachedSnapshot, float]]) -> pb.ReportUsesRequest:
    """Return a report of keys and the times of their last use, which are readings of `clock`."""
    request, now = pb.ReportUsesRequest(), clock.now()
    for snapshot, last in uses:
        use = request.uses.add(api_key=snapshot.key_name)
        use.ago.FromMicroseconds(int(min(now - last, _MAX_USE_AGE_S) * 1e6))
    return request
