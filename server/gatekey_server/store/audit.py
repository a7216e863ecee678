"""The audit log, and the ids of requests that are safe to repeat."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from gatekey_server.domain.audit import GENESIS, Event
from gatekey_server.store.database import Connection
from gatekey_server.store.queries import queries


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event and the hash that was stored with it."""

    event: Event
    hash: bytes
    receipt_wait: timedelta | None
    """How long the caller waited until it was known everywhere; None where nobody waited, or it was not written."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events of a chain to list; None and empty texts let everything through."""

    since: datetime | None = None
    until: datetime | None = None
    target: str = ""
    actor: str = ""
    verb: str = ""


async def head(connection: Connection, product: str, tenant: str) -> tuple[int, bytes]:
    """The number and the hash of the newest event of a chain; 0 and zeros where there is none."""
    row = await queries.audit_head(connection, product_id=product, tenant_id=tenant)
    return (0, GENESIS) if row is None else (row["sequence"], row["hash"])


async def append(connection: Connection, event: Event, hash_: bytes) -> None:
    """Add an event to its chain, which the caller has locked."""
    await queries.audit_insert(
        connection,
        product_id=event.product,
        tenant_id=event.tenant,
        sequence=event.sequence,
        event_time=event.time,
        verb=event.verb,
        target=event.target,
        caller=event.caller,
        actor=event.actor,
        request_id=event.request_id,
        before=_write(event.before),
        after=_write(event.after),
        revision=event.revision,
        hash=hash_,
    )


async def page(
    connection: Connection, product: str, tenant: str, filter_: Filter, after: int, limit: int
) -> Sequence[StoredEvent]:
    """Read up to `limit` events of a chain, from the one after the number `after`."""
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
        limit=limit,
    )
    return [_to_event(row) async for row in rows]


async def begin_request(connection: Connection, caller: str, request_id: uuid.UUID, fingerprint: bytes) -> bool:
    """Claim a request id; False where it was claimed before. Waits for a call with the same id to end."""
    row = await queries.request_begin(connection, caller=caller, request_id=request_id, fingerprint=fingerprint)
    return row is not None


async def add_receipts(connection: Connection, waits: Mapping[tuple[str, str, int], timedelta]) -> None:
    """Note how long the callers of mutations waited, by product, tenant and sequence number of the event."""
    await queries.receipts_insert(
        connection,
        product_ids=[product for product, _, _ in waits],
        tenant_ids=[tenant for _, tenant, _ in waits],
        sequences=[sequence for _, _, sequence in waits],
        waits_ms=[round(wait / timedelta(milliseconds=1)) for wait in waits.values()],
    )


async def lock_request(connection: Connection, caller: str, request_id: uuid.UUID) -> tuple[bytes, bytes | None] | None:
    """The fingerprint and the answer of a claimed request; None where it was not claimed.

    To be committed before it is answered: then the claim is as durable as that.
    """
    row = await queries.request_lock(connection, caller=caller, request_id=request_id)
    return None if row is None else (row["fingerprint"], row["answer"])


async def finish_request(connection: Connection, caller: str, request_id: uuid.UUID, answer: bytes) -> None:
    """Keep the answer of a request that this transaction claimed."""
    await queries.request_finish(connection, caller=caller, request_id=request_id, answer=answer)


async def purge_requests(connection: Connection, limit: int) -> int:
    """Forget up to `limit` requests that are older than a day; answers how many."""
    return int(await queries.request_purge(connection, limit=limit))


def _write(description: Any) -> str | None:
    return None if description is None else json.dumps(description)


def _to_event(row: asyncpg.Record) -> StoredEvent:
    return StoredEvent(
        Event(
            product=row["product_id"],
            tenant=row["tenant_id"],
            sequence=row["sequence"],
            time=row["event_time"],
            verb=row["verb"],
            target=row["target"],
            caller=row["caller"],
            actor=row["actor"],
            request_id=row["request_id"],
            before=json.loads(row["before"]) if row["before"] else None,
            after=json.loads(row["after"]) if row["after"] else None,
            revision=row["revision"],
        ),
        row["hash"],
        None if row["wait_ms"] is None else timedelta(milliseconds=row["wait_ms"]),
    )
