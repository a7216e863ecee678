"""Appending to the audit log, in the transaction of the change."""

from datetime import datetime

from gatekey.core.audit import AuditPosition, Description, Event

from gatekey_server.store import audit
from gatekey_server.store.audit import Head
from gatekey_server.store.database import Connection


async def append(
    connection: Connection,
    head: Head,
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
) -> AuditPosition:
    """Append an event to the chain of a locked tenant or product, after its head. Returns its position."""
    event = Event(
        product=head.product,
        tenant=head.tenant,
        sequence=head.sequence + 1,
        time=time,
        verb=verb,
        target=target,
        caller=caller,
        caller_display_name=head.caller_display_name,
        actor=actor,
        request_id=request_id,
        before=before,
        after=after,
        revision=revision,
    )
    await audit.append(connection, event, event.hash_after(head.hash))
    return event.product, event.tenant, event.sequence
