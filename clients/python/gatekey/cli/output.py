"""What commands print: tables for people, the protobuf JSON mapping for programs."""

import enum
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Protocol, TypeVar, cast

import typer
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.cells import cell_len

from gatekey.cli.problems import printable
from gatekey.v1 import types_pb2
from gatekey.v1.product_spec_pb2 import CredentialHeader

_GAP = "   "
_COUNTS_STOP_AT = 100_000


class Output(enum.StrEnum):
    """How a response is printed."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[
    Output,
    typer.Option("--output", "-o", help="For people, or the protobuf JSON mapping for programs, as --json does."),
]


DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Validate, say what would be done, and change nothing.", show_default=False)
]
EtagOption = Annotated[
    str, typer.Option("--etag", help="Refuse if it has changed since it had this etag.", show_default=False)
]


class _Named(Protocol):
    @property
    def name(self) -> str: ...


class _EnumWrapper(Protocol):
    def Name(self, number: Any) -> str: ...  # noqa: N802 - protobuf's name


M = TypeVar("M", bound=Message)
P = TypeVar("P", bound=Message)
Columns = Sequence[tuple[str, Callable[[M], str]]]
"""What people see of a message: labels, and how to get what stands below them."""


def show(message: M, output: Output, columns: Columns[M], *, dry_run: bool = False) -> None:
    """Print one thing; for a dry run, as what it would be."""
    if output is Output.JSON:
        show_json(message)
        return
    _note(output, dry_run=dry_run)
    _print_record(_texts(message, columns))


def show_json(message: Message) -> None:
    """Print one thing for programs."""
    typer.echo(_json(to_json(message), indent=2))


def show_json_line(message: Message) -> None:
    """Print one of several things that come one by one, each on a line, for programs."""
    typer.echo(_json(to_json(message)))


def show_pages(pages: Iterator[P], field: str, output: Output, columns: Columns[Any], *, dry_run: bool = False) -> P:
    """Print a list page by page, as it comes. Return the last page, of which there must be one.

    As JSON, the items of all pages stand under the field's name, next to the other fields of the last page.
    """
    _note(output, dry_run=dry_run)
    page = next(pages)
    name = page.DESCRIPTOR.fields_by_name[field].json_name
    printer = _JsonList(name) if output is Output.JSON else _Rows(columns)
    printer.add(getattr(page, field))
    for page in pages:
        printer.add(getattr(page, field))
    rest = to_json(page)
    del rest[name], rest["nextPageToken"]
    printer.end(rest)
    return page


class _Deletion(Protocol):
    @property
    def deleted(self) -> types_pb2.DeletionCounts: ...


def show_deleted(what: str, response: _Deletion, output: Output, *, dry_run: bool) -> None:
    """Say what was deleted, or would be, and how much went with it."""
    if output is Output.JSON:
        show_json(cast("Message", response))
        return
    counts = response.deleted
    parts = (
        (counts.tenants, "tenants"),
        (counts.members, "members"),
        (counts.machine_users, "machine users"),
        (counts.api_keys, "API keys"),
    )
    listing = ", ".join(
        f"{name}: {count}{' or more' if count >= _COUNTS_STOP_AT else ''}" for count, name in parts if count
    )
    typer.echo(f"{'Would delete' if dry_run else 'Deleted'} {what}" + (f" ({listing})" if listing else ""))


def show_secret(secret: str, what: str) -> None:
    """Print a secret, so that it is not overlooked and can be copied."""
    typer.echo(f"\n{what}, shown this once:\n\n    {secret}\n")


def credential_text(credential: CredentialHeader) -> str:
    """How a key is presented: `Authorization: Bearer …`."""
    header = credential.header.title() if credential.header == "authorization" else credential.header
    return " ".join(part for part in (f"{header}:", credential.scheme, "…") if part)


def to_json(message: Message) -> dict[str, Any]:
    """The protobuf JSON mapping, with every field that has no presence, set or not."""
    return json_format.MessageToDict(message, always_print_fields_with_no_presence=True)


def id_of(message: _Named) -> str:
    """The last segment of a resource name."""
    return message.name.rpartition("/")[2]


def name_of(message: _Named) -> str:
    """The resource name."""
    return message.name


def time_text(time: Timestamp | None) -> str:
    """A time to the second; nothing for None."""
    return f"{time.ToDatetime():%Y-%m-%d %H:%M:%S}Z" if time is not None else ""


def token_text(name: str, display_name: str) -> str:
    """A service token as people know it, and its id: `edge (key_…)`."""
    id_ = name.rpartition("/")[2]
    return f"{display_name} ({id_})" if display_name else id_


def enum_text(wrapper: _EnumWrapper, number: int, prefix: str) -> str:
    """A value as people write it: `read-only` for ACCESS_MODE_READ_ONLY; nothing for the unspecified one."""
    try:
        name = wrapper.Name(number).removeprefix(prefix)
    except ValueError:
        return str(number)  # A newer server has values that this program does not know.
    return "" if name == "UNSPECIFIED" else name.lower().replace("_", "-")


def mode_text(mode: types_pb2.AccessMode.ValueType) -> str:
    """An access mode."""
    return enum_text(types_pb2.AccessMode, mode, "ACCESS_MODE_")


def _note(output: Output, *, dry_run: bool) -> None:
    if dry_run and output is Output.TABLE:
        typer.echo("Dry run: nothing was changed. This is what it would be:\n")


def _json(value: Any, indent: int | None = None) -> str:
    # Sorted: protobuf puts the fields that are not set behind those that are.
    return json.dumps(value, indent=indent, sort_keys=True)


class _JsonList:
    def __init__(self, name: str) -> None:
        self._before_item = "\n  "
        typer.echo(f'{{"{name}": [', nl=False)

    def add(self, items: Sequence[Message]) -> None:
        for item in items:
            typer.echo(self._before_item + _json(to_json(item)), nl=False)
            self._before_item = ",\n  "

    def end(self, rest: dict[str, Any]) -> None:
        ending = "\n]" if self._before_item.startswith(",") else "]"
        typer.echo(ending + "".join(f', "{key}": {_json(value)}' for key, value in rest.items()) + "}")


class _Rows:
    """A table a page, so that a long list is neither kept nor waited for; records where a terminal is too narrow."""

    def __init__(self, columns: Columns[Any]) -> None:
        self._columns = columns
        self._with_header = True
        self._as_records = False

    def add(self, items: Sequence[Any]) -> None:
        rows = [_texts(item, self._columns) for item in items]
        labels = {label: label for label, _ in self._columns}
        widths = {label: max(cell_len(row[label]) for row in [labels, *rows]) for label in labels}
        # One that was begun as records goes on so.
        self._as_records |= sum(widths.values()) + len(_GAP) * (len(widths) - 1) > _width()
        if self._as_records:
            for row in rows:
                if not self._with_header:
                    typer.echo()
                self._with_header = False
                _print_record(row)
            return
        if self._with_header:
            _print_row(labels, widths, bold=True)
        self._with_header = False
        for row in rows:
            _print_row(row, widths)

    def end(self, rest: dict[str, Any]) -> None:
        """Nothing: people see what the columns show."""


def _texts(message: Any, columns: Columns[Any]) -> dict[str, str]:
    return {label: printable(text_of(message)) for label, text_of in columns}


def _print_record(texts: dict[str, str]) -> None:
    """One thing, a line for each of its fields that is not empty. Nothing is folded: what is copied stays whole."""
    filled = {label: text for label, text in texts.items() if text}
    width = max(map(cell_len, filled), default=0)
    for label, text in filled.items():
        typer.echo(_padded(label, width, bold=True) + _GAP + text)


def _print_row(texts: dict[str, str], widths: dict[str, int], *, bold: bool = False) -> None:
    line = _GAP.join(_padded(text, widths[label], bold=bold) for label, text in texts.items())
    typer.echo(line.rstrip())


def _padded(text: str, width: int, *, bold: bool) -> str:
    padding = " " * (width - cell_len(text))
    return (typer.style(text, bold=True) if bold and text and _has_style() else text) + padding


def _has_style() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def _width() -> float:
    """How wide a line can be; what is piped into another program is never broken up."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else float("inf")
