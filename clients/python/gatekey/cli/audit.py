"""`gatekey audit`: what was done, and whether the record of it is whole."""

import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gatekey import _methods as methods
from gatekey import audit
from gatekey.cli import names
from gatekey.cli.calls import Connection, connect
from gatekey.cli.output import Columns, Output, OutputOption, show_json_line, show_pages, time_text, token_text
from gatekey.cli.problems import Failure, Misuse
from gatekey.cli.times import read_moment
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
    ("Caller", lambda event: token_text(event.caller, event.caller_display_name)),
)


@app.command("list")
def list_(
    ids: ParentIds,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="At 2027-01-01T00:00:00Z or later, or in the last 7d.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Before 2027-01-01T00:00:00Z, or 7d ago.")] = None,
    target: TargetOption = "",
    actor: ActorOption = "",
    verb: VerbOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List the events of a product itself, or of a tenant, in their order."""
    request = pb.ListAuditEventsRequest(parent=_parent(ids), target=target, actor=actor, verb=verb)
    if since is not None:
        request.start_time.CopyFrom(read_moment("--since", since))
    if until is not None:
        request.end_time.CopyFrom(read_moment("--until", until))
    with connect() as gatekey:
        show_pages(gatekey.pages(methods.LIST_AUDIT_EVENTS, request), "audit_events", output, _EVENTS)


@app.command()
def tail(
    ids: ParentIds,
    target: TargetOption = "",
    actor: ActorOption = "",
    verb: VerbOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Print events as they happen, until Ctrl-C. As JSON, each stands on a line of its own."""
    request = pb.ListAuditEventsRequest(parent=_parent(ids), target=target, actor=actor, verb=verb)
    request.start_time.GetCurrentTime()
    seen = 0
    with connect() as gatekey:
        while True:
            for event in _listed(gatekey, request):
                if event.sequence > seen:
                    seen = event.sequence
                    _print(event, output)
            time.sleep(_TAIL_INTERVAL_S)


def _print(event: pb.AuditEvent, output: Output) -> None:
    if output is Output.JSON:
        show_json_line(event)
    else:
        typer.echo("  ".join(text for _, text_of in _EVENTS if (text := text_of(event))))


@app.command()
def verify(
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PRODUCT [TENANT]]", help="A product itself, or a tenant.", show_default=False),
    ] = None,
    every: Annotated[
        bool,
        typer.Option("--all", help="A product and all its tenants, those that are gone as well; else all products."),
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option(help="What `audit list --output json` printed, - for standard input; no server is asked."),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(metavar="NUMBER:HASH", help="What `verify` printed before: it must still be part of the chain."),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Prove that no event was changed, removed or put in between: every hash is made anew and compared."""
    wanted = _read_head(head) if head is not None else None
    if file is not None:
        if ids or every:
            raise Misuse("--file says which events: give neither PRODUCT nor --all")
        _report(_verify_file(file, wanted), output)
        return
    if not ids and not every:
        raise Misuse("one of PRODUCT, --all and --file is required")
    if every and wanted is not None:
        raise Misuse("--head belongs to one chain: it cannot be given with --all")
    with connect() as gatekey:
        parents = _all_parents(gatekey, ids or []) if every else iter([_parent(ids or [])])
        _report([_verify(parent, _events(gatekey, parent), wanted) for parent in parents], output)


@dataclass(frozen=True)
class _Verdict:
    """What became of the verification of one chain."""

    parent: str
    head: audit.Head
    """As far as the chain is whole."""
    problem: str = ""


def _verify(parent: str, events: Iterable[pb.AuditEvent], wanted: audit.Head | None) -> _Verdict:
    chain = audit.Chain(parent, wanted)
    try:
        for event in events:
            chain.add(event)
        return _Verdict(parent, chain.end())
    except audit.ChainBroken as broken:
        return _Verdict(parent, chain.head, broken.problem)


def _verify_file(path: Path, wanted: audit.Head | None) -> list[_Verdict]:
    chains: dict[str, list[pb.AuditEvent]] = {}
    try:
        with contextlib.nullcontext(sys.stdin) if str(path) == "-" else path.open(encoding="utf-8") as file:
            for event in audit.read(file):
                chains.setdefault(event.parent, []).append(event)
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise Failure(f"{path} is not an export of audit events: {error}") from error
    if not chains:
        raise Failure(f"{path} holds no audit events")
    if wanted is not None and len(chains) > 1:
        raise Misuse("--head belongs to one chain, and the file holds several")
    return [_verify(parent, events, wanted) for parent, events in chains.items()]


def _report(verdicts: Sequence[_Verdict], output: Output) -> None:
    broken = [verdict for verdict in verdicts if verdict.problem]
    if output is Output.JSON:
        typer.echo(json.dumps({"chains": [_to_json(verdict) for verdict in verdicts]}, indent=2))
    else:
        for verdict in verdicts:
            if not verdict.problem:
                which = f" of {verdict.parent}" if len(verdicts) > 1 else ""
                typer.echo(f"The chain{which} of {verdict.head.sequence} events is whole. Head: {verdict.head}")
    if broken:
        lines = [f"{verdict.parent}: {verdict.problem}" for verdict in broken]
        text = broken[0].problem if len(verdicts) == 1 else f"broken chains: {len(broken)} of {len(verdicts)}"
        raise Failure(text, *(lines if len(verdicts) > 1 else ()), reason="CHAIN_BROKEN")


def _to_json(verdict: _Verdict) -> dict[str, object]:
    number, _, hash_ = str(verdict.head).partition(":")
    return {
        "parent": verdict.parent,
        "whole": not verdict.problem,
        "problem": verdict.problem,
        "head": {"sequence": int(number), "hash": hash_},
    }


def _all_parents(gatekey: Connection, ids: list[str]) -> Iterator[str]:
    """Every chain of a product and its tenants, of those that are gone as well; of all products where none is named."""
    request = pb.ListAuditChainsRequest(parent=names.resolve(ids, names.PRODUCT) if ids else "")
    for page in gatekey.pages(methods.LIST_AUDIT_CHAINS, request):
        yield from (chain.parent for chain in page.audit_chains)


def _parent(ids: list[str]) -> str:
    is_product = len(ids) == 1 and ids[0].count("/") <= 1
    return names.resolve(ids, names.PRODUCT if is_product else names.TENANT)


def _events(gatekey: Connection, parent: str) -> Iterator[pb.AuditEvent]:
    return _listed(gatekey, pb.ListAuditEventsRequest(parent=parent))


def _listed(gatekey: Connection, request: pb.ListAuditEventsRequest) -> Iterator[pb.AuditEvent]:
    copy = pb.ListAuditEventsRequest()
    copy.CopyFrom(request)
    for page in gatekey.pages(methods.LIST_AUDIT_EVENTS, copy):
        yield from page.audit_events


def _read_head(text: str) -> audit.Head:
    try:
        return audit.Head.parse(text)
    except ValueError:
        raise Misuse(f"--head {text}: NUMBER:HASH is required") from None
