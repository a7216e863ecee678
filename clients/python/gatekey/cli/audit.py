"""`gatekey audit`: what was done, and whether the record of it is whole."""

import time
from collections.abc import Iterator
from datetime import UTC
from typing import Annotated, Any

import typer
from gatekey_server.domain.audit import GENESIS, Event
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from gatekey.cli import names
from gatekey.cli.calls import Connection
from gatekey.cli.connection import connect
from gatekey.cli.output import Columns, Output, OutputOption, show_pages, time_text
from gatekey.cli.problems import Failure, Misuse
from gatekey.v1 import audit_service_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="What was done, by whom, and on whose behalf.")

_TAIL_INTERVAL_S = 1.0

ParentIds = Annotated[
    list[str], typer.Argument(metavar="PRODUCT [TENANT]", help="A product itself, or a tenant.", show_default=False)
]
TargetOption = Annotated[str, typer.Option(help="Only events of this resource name.", show_default=False)]
ActorOption = Annotated[str, typer.Option(help="Only events on behalf of this resource name.", show_default=False)]
VerbOption = Annotated[str, typer.Option(help="Only events of this verb, such as CreateApiKey.", show_default=False)]

_EVENTS: Columns[pb.AuditEvent] = (
    ("No.", lambda event: str(event.sequence)),
    ("Time", lambda event: time_text(event.event_time)),
    ("Verb", lambda event: event.verb),
    ("Target", lambda event: event.target.removeprefix(f"{event.parent}/")),
    ("Actor", lambda event: event.actor.removeprefix(f"{event.parent}/")),
    ("Caller", lambda event: event.caller.rpartition("/")[2]),
)


@app.command("list")
def list_(
    ids: ParentIds,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="At 2027-01-01T00:00:00Z or later.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Before 2027-01-01T00:00:00Z.")] = None,
    target: TargetOption = "",
    actor: ActorOption = "",
    verb: VerbOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List the events of a product itself, or of a tenant, in their order."""
    request = pb.ListAuditEventsRequest(parent=_parent(ids), target=target, actor=actor, verb=verb)
    _read_time(request.start_time, "--since", since)
    _read_time(request.end_time, "--until", until)
    with connect() as gatekey:
        show_pages(gatekey.pages(gatekey.audit.ListAuditEvents, request), "audit_events", output, _EVENTS)


@app.command()
def tail(ids: ParentIds, target: TargetOption = "", actor: ActorOption = "", verb: VerbOption = "") -> None:
    """Print events as they happen, until Ctrl-C."""
    request = pb.ListAuditEventsRequest(parent=_parent(ids), target=target, actor=actor, verb=verb)
    request.start_time.GetCurrentTime()
    seen = 0
    with connect() as gatekey:
        while True:
            for event in _events(gatekey, request):
                if event.sequence > seen:
                    seen = event.sequence
                    typer.echo("  ".join(text for _, text_of in _EVENTS if (text := text_of(event))))
            time.sleep(_TAIL_INTERVAL_S)


@app.command()
def verify(
    ids: ParentIds,
    head: Annotated[
        str | None,
        typer.Option(metavar="NUMBER:HASH", help="What `verify` printed before: it must still be part of the chain."),
    ] = None,
) -> None:
    """Prove that no event was changed, removed or put in between: every hash is made anew and compared."""
    wanted = _read_head(head) if head is not None else None
    number, previous = 0, GENESIS
    with connect() as gatekey:
        for event in _events(gatekey, pb.ListAuditEventsRequest(parent=_parent(ids))):
            number += 1
            if event.sequence != number:
                raise Failure(f"event {number} is missing", reason="CHAIN_BROKEN")
            previous = _to_event(event).hash_after(previous)
            if previous != event.hash:
                raise Failure(f"event {number} is not what was written", reason="CHAIN_BROKEN")
            if wanted is not None and number == wanted[0] and previous.hex() != wanted[1]:
                raise Failure(f"event {number} is another one than before", reason="CHAIN_BROKEN")
    if wanted is not None and number < wanted[0]:
        raise Failure(f"the chain ends at {number}, before {wanted[0]}", reason="CHAIN_BROKEN")
    typer.echo(f"The chain of {number} events is whole. Head: {number}:{previous.hex()}")


def _parent(ids: list[str]) -> str:
    is_product = len(ids) == 1 and ids[0].count("/") <= 1
    return names.resolve(ids, names.PRODUCT if is_product else names.TENANT)


def _events(gatekey: Connection, request: pb.ListAuditEventsRequest) -> Iterator[pb.AuditEvent]:
    copy = pb.ListAuditEventsRequest()
    copy.CopyFrom(request)
    for page in gatekey.pages(gatekey.audit.ListAuditEvents, copy):
        yield from page.audit_events


def _read_time(field: Timestamp, option: str, text: str | None) -> None:
    if text is None:
        return
    try:
        field.FromJsonString(text)
    except ValueError:
        raise Misuse(f"{option} {text}: a time such as 2027-01-01T00:00:00Z is required") from None


def _read_head(text: str) -> tuple[int, str]:
    number, _, hash_ = text.partition(":")
    if not number.isdigit() or len(hash_) != 64:
        raise Misuse(f"--head {text}: NUMBER:HASH is required")
    return int(number), hash_


def _to_event(message: pb.AuditEvent) -> Event:
    _, product, *rest = message.parent.split("/")
    return Event(
        product=product,
        tenant=rest[1] if rest else "",
        sequence=message.sequence,
        time=message.event_time.ToDatetime(tzinfo=UTC),
        verb=message.verb,
        target=message.target,
        caller=message.caller,
        actor=message.actor,
        request_id=message.request_id,
        before=_plain(json_format.MessageToDict(message.before)) if message.HasField("before") else None,
        after=_plain(json_format.MessageToDict(message.after)) if message.HasField("after") else None,
        revision=message.revision if message.HasField("revision") else None,
    )


def _plain(value: Any) -> Any:
    """Undo what `Struct` does to whole numbers: events hold no others."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) else value
