"""`AuditService` on the wire."""

from gatekey.v1 import audit_service_pb2 as pb

from gatekey_server.commands import audit
from gatekey_server.domain.names import ProductName, TenantName
from gatekey_server.rpc import paging
from gatekey_server.rpc.edge import Call
from gatekey_server.rpc.values import read_time, write_time
from gatekey_server.store.audit import Filter, StoredEvent
from gatekey_server.store.database import Database

# ruff: noqa: N802 - methods are named and described by the protocol definition


class AuditServicer:
    """Reads the audit log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ListAuditEvents(self, request: pb.ListAuditEventsRequest, call: Call) -> pb.ListAuditEventsResponse:
        size = paging.read_size(request.page_size)
        after = paging.read_number(request, request.page_token)
        filter_ = Filter(
            since=read_time(request.start_time, "start_time") if request.HasField("start_time") else None,
            until=read_time(request.end_time, "end_time") if request.HasField("end_time") else None,
            target=request.target,
            actor=request.actor,
            verb=request.verb,
        )
        parent = _read_parent(request.parent)
        page = await audit.list_events(self._database, call.caller, parent, filter_, after, size)
        return pb.ListAuditEventsResponse(
            audit_events=[_write(stored) for stored in page.items],
            next_page_token=paging.write_token(request, page.next_cursor),
        )


def _read_parent(text: str) -> ProductName | TenantName:
    if text.count("/") == 1:
        return ProductName.parse(text, "parent")
    return TenantName.parse(text, "parent")


def _write(stored: StoredEvent) -> pb.AuditEvent:
    event = stored.event
    parent = TenantName(event.product, event.tenant) if event.tenant else ProductName(event.product)
    message = pb.AuditEvent(
        parent=str(parent),
        sequence=event.sequence,
        event_time=write_time(event.time),
        verb=event.verb,
        target=event.target,
        caller=event.caller,
        actor=event.actor,
        request_id=event.request_id,
        hash=stored.hash,
    )
    if event.revision is not None:
        message.revision = event.revision
    if stored.receipt_wait is not None:
        message.receipt_wait.FromTimedelta(stored.receipt_wait)
    if event.before is not None:
        message.before.update(event.before)
    if event.after is not None:
        message.after.update(event.after)
    return message
