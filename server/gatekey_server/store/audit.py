"""The audit log, and request ids."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import structlog
from gatekey.core.audit import GENESIS, Description, Event

from gatekey_server.store import pauses
from gatekey_server.store.database import Connection
from gatekey_server.store.queries import queries
from gatekey_server.store.slices import Slice

SCANNED_EVENTS = 10_000
"""How many events one query reads at most to find those that match a filter."""

_LONG_CHARS = 50_000

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event, and the hash that was stored with it."""

    event: Event
    hash: bytes
    receipt_wait: timedelta | None
    """How long the caller waited for propagation; None where it did not wait, or the wait was not recorded."""


@dataclass(frozen=True, slots=True)
class Filter:
    """The filter of a list of events. None and empty texts match everything."""

    since: datetime | None = None
    until: datetime | None = None
    target: str = ""
    actor: str = ""
    verb: str = ""


@dataclass(frozen=True, slots=True)
class ChainInfo:
    """The chain of a product itself, or of one tenant."""

    product: str
    tenant: str
    """Empty for the product itself."""
    sequence: int
    """The time of the newest event."""


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain, after which the next event is appended."""

    product: str
    tenant: str
    sequence: int
    """The sequence number of the newest event; 0 where there is none."""
    hash: bytes
    caller_display_name: str | None
    """The display name of the token of the caller that is about to append."""


async def head(connection: Connection, product: str, tenant: str, caller: tuple[int, uuid.UUID] | None = None) -> Head:
    """Return the end of a locked chain, for a caller whose token has these uids; None for the server itself."""
    tenant_uid, key_uid = caller or (None, None)
    row = await queries.audit_head(
        connection, product_id=product, tenant_id=tenant, caller_tenant_uid=tenant_uid, caller_key_uid=key_uid
    )
    sequence, hash_ = (0, GENESIS) if row["sequence"] is None else (row["sequence"], row["hash"])
    return Head(product, tenant, sequence, hash_, row["caller_display_name"])


async def append(connection: Connection, event: Event, hash_: bytes) -> None:
    """Append an event to its chain, which the caller has locked."""
    await queries.audit_insert(
        connection,
        product_id=event.product,
        tenant_id=event.tenant,
        sequence=event.sequence,
        event_time=event.time,
        verb=event.verb,
        target=event.target,
        caller=event.caller,
        caller_display_name=event.caller_display_name,
        actor=event.actor,
        request_id=event.request_id,
        before=_write(event.before),
        after=_write(event.after),
        revision=event.revision,
        hash=hash_,
    )


async def page(
    connection: Connection, product: str, tenant: str, filter_: Filter, after: int, limit: int
) -> Slice[StoredEvent, int]:
    """Return up to `limit` events of a chain that match a filter, after the sequence number `after`.

    Only the next `SCANNED_EVENTS` are searched, because any number of events may not match.
    """
    end = after + SCANNED_EVENTS
    rows = queries.audit_list(
        connection,
        product_id=product,
        tenant_id=tenant,
        since=filter_.since,
        until=filter_.until,
        target=filter_.target,
        actor=filter_.actor,
        verb=filter_.verb,
        after=after,
        end=end,
        limit=limit,
    )
    events = [await _to_event(row) async for row in rows]
    if len(events) == limit:
        return Slice(events, events[-1].event.sequence)
    newest = await head(connection, product, tenant)
    return Slice(events, end if newest.sequence > end else None)


async def chains(
    connection: Connection, product: str | None, after: tuple[str, str] | None, limit: int
) -> Slice[ChainInfo, tuple[str, str]]:
    """Return up to `limit` chains of a product, or of all, after `after`, ordered by product and tenant.

    The product's own chain, whose tenant is empty, comes first. `after` is None for the first page.
    """
    start = after or (product or "", "")
    rows = queries.audit_chains(connection, product_id=start[0], tenant_id=start[1], only=product, limit=limit + 1)
    found = [ChainInfo(row["product_id"], row["tenant_id"], row["sequence"]) async for row in rows]
    if found and (found[0].product, found[0].tenant) == after:
        del found[0]
    return Slice.of(found[:limit], limit, lambda chain: (chain.product, chain.tenant))


async def last_before(connection: Connection, product: str, tenant: str, target: str) -> Description | None:
    """Return the description of a removed target, if the event is among the newest `SCANNED_EVENTS` of its chain."""
    text = await queries.audit_last_before(
        connection, product_id=product, tenant_id=tenant, target=target, scan=SCANNED_EVENTS, limit=1
    )
    description: Description | None = json.loads(text) if text else None
    return description


async def begin_request(connection: Connection, caller: str, request_id: uuid.UUID, fingerprint: bytes) -> bool:
    """Claim a request id. Returns False where it was claimed before. Waits for a call with the same id to end."""
    row = await queries.request_begin(connection, caller=caller, request_id=request_id, fingerprint=fingerprint)
    return row is not None


async def add_receipts(connection: Connection, waits: Mapping[tuple[str, str, int], timedelta]) -> None:
    """Store how long the callers of mutations waited, by product, tenant and sequence number of the event."""
    await queries.receipts_insert(
        connection,
        product_ids=[product for product, _, _ in waits],
        tenant_ids=[tenant for _, tenant, _ in waits],
        sequences=[sequence for _, _, sequence in waits],
        waits_ms=[round(wait / timedelta(milliseconds=1)) for wait in waits.values()],
    )


async def lock_request(connection: Connection, caller: str, request_id: uuid.UUID) -> tuple[bytes, bytes | None] | None:
    """Return the fingerprint and the response of a claimed request; None where it was not claimed.

    Commit before responding: then the first call's change is as durable as this transaction.
    """
    row = await queries.request_lock(connection, caller=caller, request_id=request_id)
    return None if row is None else (row["fingerprint"], row["answer"])


async def finish_request(connection: Connection, caller: str, request_id: uuid.UUID, answer: bytes) -> None:
    """Store the response of a request that this transaction claimed."""
    await queries.request_finish(connection, caller=caller, request_id=request_id, answer=answer)


async def purge_requests(connection: Connection, limit: int) -> int:
    """Purge up to `limit` requests that are older than a day. Returns how many."""
    return int(await queries.request_purge(connection, limit=limit))


def _write(description: Any) -> str | None:
    return None if description is None else json.dumps(description)


async def _read(text: str | None) -> Any:
    if not text:
        return None
    if len(text) > _LONG_CHARS:
        await pauses.pause()
    try:
        description = json.loads(text)
    except ValueError as error:
        _log.error("audit_event.unreadable", error=type(error).__name__)
        description = None
    # The other events of the page must still be readable. Verification finds this one by its hash.
    return description if isinstance(description, dict) else {}


async def _to_event(row: asyncpg.Record) -> StoredEvent:
    before, after = await _read(row["before"]), await _read(row["after"])
    return StoredEvent(
        Event(
            product=row["product_id"],
            tenant=row["tenant_id"],
            sequence=row["sequence"],
            time=row["event_time"],
            verb=row["verb"],
            target=row["target"],
            caller=row["caller"],
            caller_display_name=row["caller_display_name"],
            actor=row["actor"],
            request_id=row["request_id"],
            before=before,
            after=after,
            revision=row["revision"],
        ),
        row["hash"],
        None if row["wait_ms"] is None else timedelta(milliseconds=row["wait_ms"]),
    )
