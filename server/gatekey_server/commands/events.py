"""Appending to the audit log, in the transaction of what is told."""

from datetime import datetime

from gatekey_server.domain.audit import Description, Event
from gatekey_server.store import audit
from gatekey_server.store.database import Connection

Place = tuple[str, str, int]
"""Where an event stands: product, tenant (empty for the product's own chain) and sequence number."""


async def append(
    connection: Connection,
    product: str,
    tenant: str,
    *,
    time: datetime,
    verb: str,
    target: str,
    caller: str,
    actor: str = "",
    request_id: str = "",
    before: Description | None,
    after: Description | None,
    revision: int,
) -> Place:
    """Add an event to the chain of a locked tenant or product; answers where it stands."""
    sequence, previous = await audit.head(connection, product, tenant)
    event = Event(
        product=product,
        tenant=tenant,
        sequence=sequence + 1,
        time=time,
        verb=verb,
        target=target,
        caller=caller,
        actor=actor,
        request_id=request_id,
        before=before,
        after=after,
        revision=revision,
    )
    await audit.append(connection, event, event.hash_after(previous))
    return product, tenant, event.sequence
