"""`CacheService` on the wire."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import lru_cache

from gatekey.core.changes import ScopeChange
from gatekey.core.decisions import RULES, CompiledSpec, KeySnapshot, Owner, PrincipalKind
from gatekey.core.errors import FailedPrecondition, InvalidRequest, Unreadable
from gatekey.core.names import ApiKeyName
from gatekey.core.scopes import ScopePseudonyms
from gatekey.core.secrets import Keyring, Secret
from gatekey.v1 import cache_service_pb2 as pb
from gatekey.wire.conversions import ACCESS_MODE, KEY_KIND, read_duration, write_grants, write_time
from gatekey.wire.specs import write_spec
from google.protobuf.duration_pb2 import Duration

from gatekey_server.authorization.callers import Caller
from gatekey_server.background.uses import UsageRecorder
from gatekey_server.commands.cache import ClientCaches, Cursor, Synced
from gatekey_server.freshness.snapshot_source import VersionedSnapshot
from gatekey_server.rpc.context import Clock, Token
from gatekey_server.store import pauses

MAX_RESOLVED_KEYS = 1000
MAX_RESOLVED_BYTES = 1 << 20
"""How large a response gets. What does not fit is left out, and the client asks for it again."""

MAX_KNOWN_SPECS = 256
MAX_REPORTED_USES = 1000
MAX_USE_AGE = timedelta(days=1)


class CacheServicer:
    """Serves client caches."""

    def __init__(
        self,
        caches: ClientCaches,
        keyring: Keyring,
        clock: Clock,
        usage: UsageRecorder,
        token_of: Callable[[str], Token],
    ) -> None:
        self._caches = caches
        self._keyring = keyring
        self._clock = clock
        self._usage = usage
        self._token_of = token_of

    async def Resolve(self, request: pb.ResolveRequest, token: Token) -> pb.ResolveResponse:  # noqa: N802
        """See the protocol definition."""
        now = self._clock()
        _check_resolve(request)
        secrets = [self._keyring.digests(key) for key in request.keys]
        caller, found = await self._caches.resolve(token.digests, secrets, Cursor.read(request.cursor), now)
        self._usage.record(caller.snapshot, now)
        if request.rules != RULES:
            raise FailedPrecondition("RULES_UNKNOWN", f"this server decides by the rules {RULES}")
        return await _write_resolved(found, secrets, self._caches.names(), set(request.known_specs), now)

    def sync_at_once(self, data: bytes, authorization: str) -> bytes | None:
        """Answer by what is remembered; None where that is too little."""
        token, request = self._token_of(authorization), pb.SyncRequest.FromString(data)
        synced = self._caches.sync_at_once(token.digests, Cursor.read(request.cursor), self._clock())
        return None if synced is None else self._write_synced(synced).SerializeToString()

    async def Sync(self, request: pb.SyncRequest, token: Token) -> pb.SyncResponse:  # noqa: N802
        """See the protocol definition."""
        synced = await self._caches.sync(token.digests, Cursor.read(request.cursor), self._clock())
        return self._write_synced(synced)

    async def ReportUses(self, request: pb.ReportUsesRequest, token: Token) -> pb.ReportUsesResponse:  # noqa: N802
        """See the protocol definition."""
        now = self._clock()
        caller = await self._caches.identify(token.digests, now)
        self._usage.record(caller.snapshot, now)
        if not 1 <= len(request.uses) <= MAX_REPORTED_USES:
            raise InvalidRequest.at("uses", "USES_COUNT_INVALID", f"must hold 1 to {MAX_REPORTED_USES}")
        uses = await pauses.each(_read_use(use, f"uses[{number}]", now) for number, use in enumerate(request.uses))
        await asyncio.sleep(0)
        await self._caches.report_uses(caller, uses)
        return pb.ReportUsesResponse()

    def _write_synced(self, synced: Synced) -> pb.SyncResponse:
        self._usage.record(synced.caller.snapshot, synced.caller.now)
        response = pb.SyncResponse(
            cursor=synced.cursor.write(),
            revision=synced.cursor.position.revision,
            reset=synced.changes is None,
            failed_over=synced.failed_over,
            lease=_write_lease(synced.lease_s),
        )
        if synced.changes:
            names = self._caches.names()
            response.changes.extend(
                _write_change(change, names, synced.caller)
                for change in synced.changes
                if change.product is None or synced.caller.may_check(change.product)
            )
        return response


def _check_resolve(request: pb.ResolveRequest) -> None:
    if not 1 <= len(request.keys) <= MAX_RESOLVED_KEYS:
        raise InvalidRequest.at("keys", "KEYS_COUNT_INVALID", f"must hold 1 to {MAX_RESOLVED_KEYS}")
    if len(request.known_specs) > MAX_KNOWN_SPECS:
        raise InvalidRequest.at("known_specs", "SPECS_COUNT_INVALID", f"must hold at most {MAX_KNOWN_SPECS}")


def _read_use(use: pb.KeyUse, field: str, now: datetime) -> tuple[ApiKeyName, datetime]:
    ago = read_duration(use.ago, f"{field}.ago")
    if not timedelta(0) <= ago <= MAX_USE_AGE:
        raise InvalidRequest.at(f"{field}.ago", "DURATION_INVALID", "is negative, or more than a day")
    return ApiKeyName.parse(use.api_key, f"{field}.api_key"), now - ago


def _write_lease(seconds: float) -> Duration:
    # Rounded down: never more than is left.
    lease = Duration()
    lease.FromMicroseconds(int(seconds * 1e6))
    return lease


def _write_change(change: ScopeChange, names: ScopePseudonyms, caller: Caller) -> pb.ScopeChange:
    if change.key_uid is not None:
        # A client knows the pseudonyms of secrets that it has presented, and must hear of them only in products that it
        # may check. A deleted tenant has no product here; then nothing is new about the secret either.
        secret = b""
        if change.digest is not None and change.tenant_product is not None and caller.may_check(change.tenant_product):
            secret = names.secret(change.digest)
        return pb.ScopeChange(revision=change.revision, key=names.key(change.key_uid), secret=secret)
    if change.principal_uid is not None:
        return pb.ScopeChange(revision=change.revision, principal=names.principal(change.principal_uid))
    if change.tenant_uid is not None:
        return pb.ScopeChange(revision=change.revision, tenant=names.tenant(change.tenant_uid))
    return pb.ScopeChange(revision=change.revision, product=change.product or "")


async def _write_resolved(
    found: Sequence[VersionedSnapshot | Unreadable],
    secrets: Sequence[Secret],
    names: ScopePseudonyms,
    known_specs: set[bytes],
    now: datetime,
) -> pb.ResolveResponse:
    response, size, rest = pb.ResolveResponse(time=write_time(now)), 0, pauses.Pauses()
    for known, secret in zip(found, secrets, strict=True):
        await rest()
        if isinstance(known, Unreadable):
            response.results.add(unreadable=True).secret_scopes.extend(names.secret(digest) for digest in secret)
            continue
        result = response.results.add(revision=known.revision)
        if known.snapshot is None:
            result.secret_scopes.extend(names.secret(digest) for digest in secret)
            continue
        if size > MAX_RESOLVED_BYTES:
            # A key is useless without its spec. The client asks again, naming the specs that it has by then.
            result.key.SetInParent()
            continue
        key, spec = _write_key(known.snapshot, names), _write_spec(known.snapshot.compiled)
        is_new = spec.id not in known_specs
        more = key.ByteSize() + (spec.ByteSize() if is_new else 0)
        if size and size + more > MAX_RESOLVED_BYTES:
            size = MAX_RESOLVED_BYTES + 1
            result.key.SetInParent()
            continue
        size += more
        result.key.CopyFrom(key)
        if is_new:
            known_specs.add(spec.id)
            response.specs.append(spec)
    return response


def _write_key(snapshot: KeySnapshot, names: ScopePseudonyms) -> pb.ResolvedKey:
    tenant_uid, key_uid = snapshot.uid
    return pb.ResolvedKey(
        spec=_write_spec(snapshot.compiled).id,
        tenant=snapshot.tenant,
        tenant_suspended=snapshot.tenant_suspended,
        tenant_deleted=snapshot.tenant_deleted,
        api_key=snapshot.key_id,
        kind=KEY_KIND.write(snapshot.kind),
        mode=ACCESS_MODE.write(snapshot.mode),
        grants=write_grants(snapshot.grants.grants()),
        revoked=snapshot.key_revoked,
        disabled=snapshot.key_disabled,
        expire_time=write_time(snapshot.expire_time),
        owner=_write_owner(snapshot.owner, names.principal(snapshot.principal_uid or 0)) if snapshot.owner else None,
        key_scope=names.key(key_uid),
        tenant_scope=names.tenant(tenant_uid),
    )


def _write_owner(owner: Owner, scope: int) -> pb.ResolvedOwner:
    if owner.kind is PrincipalKind.MACHINE_USER:
        return pb.ResolvedOwner(machine_user=owner.id, scope=scope)
    return pb.ResolvedOwner(member=owner.id, role=owner.role or "", scope=scope)


@lru_cache(maxsize=MAX_KNOWN_SPECS)
def _write_spec(compiled: CompiledSpec) -> pb.ResolvedSpec:
    spec = write_spec(compiled.spec)
    return pb.ResolvedSpec(id=hashlib.sha256(spec.SerializeToString(deterministic=True)).digest()[:16], spec=spec)
