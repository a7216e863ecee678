"""`AuditService` on the wire."""

from collections.abc import Iterator, Mapping
from typing import Any

from gatekey.core.audit import Description
from gatekey.core.names import ProductName, TenantName
from gatekey.v1 import audit_service_pb2 as pb
from gatekey.wire.conversions import read_time, write_time
from google.protobuf.struct_pb2 import NULL_VALUE, Struct, Value

from gatekey_server.commands import audit
from gatekey_server.rpc.context import Call
from gatekey_server.rpc.wire import paging
from gatekey_server.store import pauses
from gatekey_server.store.audit import ChainInfo, Filter, StoredEvent
from gatekey_server.store.database import Database

# ruff: noqa: N802 - methods are named and described by the protocol definition


class AuditServicer:
    """Reads the audit log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ListAuditEvents(self, request: pb.ListAuditEventsRequest, call: Call) -> pb.ListAuditEventsResponse:
        after = paging.read_number(request, request.page_token)
        filter_ = Filter(
            since=read_time(request.start_time, "start_time") if request.HasField("start_time") else None,
            until=read_time(request.end_time, "end_time") if request.HasField("end_time") else None,
            target=request.target,
            actor=request.actor,
            verb=request.verb,
        )
        parent = _read_parent(request.parent)
        response = pb.ListAuditEventsResponse()
        page = paging.PageWriter(response.audit_events, _write, request.page_size)
        following = await audit.list_events(self._database, call.caller, parent, filter_, after, page)
        response.next_page_token = paging.write_token(request, following)
        return response

    async def ListAuditChains(self, request: pb.ListAuditChainsRequest, call: Call) -> pb.ListAuditChainsResponse:
        product = ProductName.parse(request.parent, "parent") if request.parent else None
        after = paging.read_token(request, request.page_token) or ""
        response = pb.ListAuditChainsResponse()
        page = paging.PageWriter(response.audit_chains, _write_chain, request.page_size)
        following = await audit.list_chains(self._database, call.caller, product, after, page)
        response.next_page_token = paging.write_token(request, following)
        return response


def _read_parent(text: str) -> ProductName | TenantName:
    if text.count("/") == 1:
        return ProductName.parse(text, "parent")
    return TenantName.parse(text, "parent")


def _write_chain(chain: ChainInfo) -> pb.AuditChain:
    return pb.AuditChain(parent=str(_parent(chain.product, chain.tenant)), sequence=chain.sequence)


def _parent(product: str, tenant: str) -> ProductName | TenantName:
    return TenantName(product, tenant) if tenant else ProductName(product)


async def _write(stored: StoredEvent) -> pb.AuditEvent:
    event = stored.event
    message = pb.AuditEvent(
        parent=str(_parent(event.product, event.tenant)),
        sequence=event.sequence,
        event_time=write_time(event.time),
        verb=event.verb,
        target=event.target,
        caller=event.caller,
        caller_display_name=event.caller_display_name or "",
        actor=event.actor,
        request_id=event.request_id,
        hash=stored.hash,
    )
    if event.revision is not None:
        message.revision = event.revision
    if stored.receipt_wait is not None:
        message.receipt_wait.FromTimedelta(stored.receipt_wait)
    # Each event may hold a product's whole spec.
    rest = pauses.Pauses()
    for description, struct in ((event.before, message.before), (event.after, message.after)):
        if description is not None:
            struct.SetInParent()
            for _ in _fill(struct, description):
                await rest()
    return message


def _fill(struct: Struct, description: Description) -> Iterator[None]:
    """Do what `struct.update` does, in steps."""
    for key, value in description.items():
        yield from _fill_value(struct.fields[key], value)


def _fill_value(message: Value, value: Any) -> Iterator[None]:
    yield
    if isinstance(value, Mapping):
        message.struct_value.SetInParent()
        yield from _fill(message.struct_value, value)
    elif isinstance(value, list | tuple):
        message.list_value.SetInParent()
        for item in value:
            yield from _fill_value(message.list_value.values.add(), item)
    elif value is None:
        message.null_value = NULL_VALUE
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, str):
        message.string_value = value
    else:
        try:
            message.number_value = value
        except OverflowError:
            # No event has another type.
            message.null_value = NULL_VALUE
