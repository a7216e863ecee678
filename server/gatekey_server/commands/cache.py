"""Serving client caches: the snapshots of secrets, and what has changed since."""

import struct
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Self

from gatekey.core.changes import NOWHERE, Position, ScopeChange
from gatekey.core.errors import DomainError, Unavailable, Unreadable
from gatekey.core.names import ApiKeyName
from gatekey.core.scopes import ScopePseudonyms
from gatekey.core.secrets import Secret

from gatekey_server.authorization import callers
from gatekey_server.authorization.callers import Caller
from gatekey_server.freshness.change_log import ChangeLog
from gatekey_server.freshness.lease import PrimaryLease
from gatekey_server.freshness.snapshot_source import SnapshotSource, VersionedSnapshot
from gatekey_server.store import api_keys
from gatekey_server.store.database import Database

_CURSOR = struct.Struct(">q16s8s8s")


class Cursor(NamedTuple):
    """The position up to which a client has applied changes."""

    position: Position = NOWHERE
    rights: bytes = b""
    """A digest of what the client was allowed to check then."""
    server: bytes = b""
    """The pseudonym of the database server that the position came from."""

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Parse a cursor. Text that no server wrote gives the cursor of a client that has applied nothing."""
        if len(data) != _CURSOR.size:
            return cls()
        revision, stamp, *rest = _CURSOR.unpack(data)
        return cls(Position(revision, uuid.UUID(bytes=stamp)), *rest)

    def write(self) -> bytes:
        """Return the cursor as bytes for a client."""
        return _CURSOR.pack(self.position.revision, self.position.stamp.bytes, self.rights, self.server)


@dataclass(frozen=True, slots=True)
class Synced:
    """The changes that a client must apply, and for how long they are complete."""

    caller: Caller
    cursor: Cursor
    changes: Sequence[ScopeChange] | None
    """None: the client must drop everything."""
    failed_over: bool
    """The client must drop what is newer than its cursor."""
    lease_s: float
    """Counted from the client's reading of its clock before it sent the request."""


RecordUse = Callable[[tuple[int, uuid.UUID], datetime], None]
"""Takes the uids of tenant and key, and when the key was used."""


class ClientCaches:
    """Serves client caches."""

    def __init__(
        self, database: Database, snapshots: SnapshotSource, log: ChangeLog, lease: PrimaryLease, record_use: RecordUse
    ) -> None:
        self._database = database
        self._snapshots = snapshots
        self._log = log
        self._lease = lease
        self._record_use = record_use

    def names(self) -> ScopePseudonyms:
        """The pseudonyms of scopes. Raises `Unavailable` (`LEASE_NOT_HELD`) before the first poll."""
        if self._log.server is None:
            raise Unavailable("LEASE_NOT_HELD", "this server has only just begun")
        return ScopePseudonyms(self._log.scope_key)

    async def identify(self, token: Secret, now: datetime) -> Caller:
        """Return the caller that holds a token. Raises `Unauthenticated`, `Unavailable` and `Overloaded`."""
        return callers.identify(await self._snapshots.get(token), now)

    async def resolve(
        self, token: Secret, secrets: Sequence[Secret], cursor: Cursor, now: datetime
    ) -> tuple[Caller, list[VersionedSnapshot | Unreadable]]:
        """Return the snapshots of secrets that the caller may check, at the cursor or later in its history.

        A secret's place holds an error where its snapshot cannot be read.

        Raises `Unauthenticated`, and `Unavailable` or `Overloaded` where a necessary lookup fails or this process
        has not reached the cursor (`REVISION_NOT_REACHED`).
        """
        reached = self._snapshots.applied
        asking, *found = await self._snapshots.get_each([(token, 0), *((secret, 0) for secret in secrets)])
        caller = callers.identify(asking, now)
        if cursor != Cursor() and not self._log.includes(cursor.position):
            raise _not_reached(self._log.head)
        return caller, [_unless_refused(callers.as_seen(caller, known, reached)) for known in found]

    def sync_at_once(self, token: Secret, cursor: Cursor, now: datetime) -> Synced | None:
        """What has changed; None where too little is remembered. Nothing else happens meanwhile.

        Raises `Unauthenticated`, `PermissionDenied`, and `Unavailable` (`REVISION_NOT_REACHED`).
        """
        asking = self._snapshots.recall(token)
        if asking is None:
            return None
        caller = callers.identify(asking, now)
        caller.require_some_checks()
        lease_s = self._lease.rest_s()
        if caller.snapshot.expire_time is not None:
            lease_s = min(lease_s, (caller.snapshot.expire_time - now).total_seconds())
        if lease_s <= 0:
            return None
        head, server = self._log.head, self._log.server
        if server is None:
            return None
        if cursor.position.revision > head.revision:
            raise _not_reached(head)
        changes = self._log.since(cursor.position) if cursor.rights == caller.checking_rights else None
        reached = Cursor(head, caller.checking_rights, self.names().server(server))
        return Synced(caller, reached, changes, cursor.server != reached.server, lease_s)

    async def sync(self, token: Secret, cursor: Cursor, now: datetime) -> Synced:
        """Return what has changed. Raises as `sync_at_once`, and `Unavailable` (`LEASE_NOT_HELD`)."""
        (await self.identify(token, now)).require_some_checks()
        synced = self.sync_at_once(token, cursor, now)
        if synced is None:
            raise Unavailable("LEASE_NOT_HELD", "this server holds no lease at the moment")
        return synced

    async def report_uses(self, caller: Caller, uses: Sequence[tuple[ApiKeyName, datetime]]) -> None:
        """Record the uses of keys that the caller's cache has decided. Keys that it may not check are left out.

        Raises `PermissionDenied` where the caller may check no keys, and `Unavailable`.
        """
        caller.require_some_checks()
        times = {key: time for key, time in uses if caller.may_check(key.parent.product)}
        for key, uid in (await api_keys.resolve_key_uids(self._database, list(times))).items():
            self._record_use(uid, times[key])


def _not_reached(head: Position) -> Unavailable:
    return Unavailable("REVISION_NOT_REACHED", f"this server is at revision {head.revision}")


def _unless_refused(known: VersionedSnapshot | DomainError) -> VersionedSnapshot | Unreadable:
    if isinstance(known, DomainError) and not isinstance(known, Unreadable):
        raise known
    return known
