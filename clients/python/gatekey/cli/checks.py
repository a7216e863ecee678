"""`gatekey check`: may the holder of this key do this action on this resource?"""

import sys
from typing import Annotated

import typer

from gatekey import _methods as methods
from gatekey.cli import streams
from gatekey.cli.calls import Connection, connect
from gatekey.cli.output import Columns, Output, OutputOption, enum_text, show, time_text
from gatekey.cli.problems import Failure
from gatekey.v1 import check_service_pb2 as pb
from gatekey.v1 import types_pb2

DENIED = 3
_MAX_KEY_BYTES = 4096

_COLUMNS: Columns[pb.CheckResponse] = (
    ("Reason", lambda response: reason_text(response.reason)),
    ("Key", lambda response: response.api_key),
    ("Kind", lambda response: enum_text(types_pb2.KeyKind, response.kind, "KEY_KIND_")),
    ("Owner", lambda response: response.principal),
    ("Role", lambda response: response.role),
    ("Missing", lambda response: " ".join(f"{each.resource}:{each.action}" for each in response.missing_permissions)),
    ("Expires", lambda response: time_text(response.expire_time if response.HasField("expire_time") else None)),
)


def check(
    key: Annotated[str, typer.Argument(help="The secret; `-` reads it from standard input, out of sight of others.")],
    resource: Annotated[str, typer.Argument(help="The path of the resource: links/abc.")],
    action: Annotated[str, typer.Argument(help="The action: read.")],
    tenant: Annotated[
        str | None, typer.Option(metavar="ID", help="The tenant that the request is about; a key of another is denied.")
    ] = None,
    product: Annotated[str | None, typer.Option(help="The product that asks: keys of others are unknown.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check a key. Ends with 0 if the action is allowed, with 3 if it is denied, with 1 if nothing was decided."""
    request = pb.CheckRequest(key=read_secret(key), resource=resource, action=action, tenant=tenant, product=product)
    with connect() as gatekey:
        response = gatekey.call(methods.CHECK, request)
        hint = _hint(gatekey, product) if response.reason == pb.CheckResponse.REASON_KEY_UNKNOWN else ""
    if output is Output.TABLE:
        typer.echo("Allowed" if response.allowed else f"Denied: {response.message}")
    show(response, output, (*_COLUMNS, ("Hint", lambda _: hint)))
    if not response.allowed:
        raise typer.Exit(DENIED)


def _hint(gatekey: Connection, product: str | None) -> str:
    """Why a key may be unknown though it is not: the token, or --product, is of another product."""
    if product is not None:
        return f"a key of another product than {product} is unknown as well"
    request = pb.GetCheckConfigRequest(name="products/-/checkConfig")
    try:
        config = gatekey.call(methods.GET_CHECK_CONFIG, request)
    except Failure:
        return ""  # It may check several, or none at all, which the check would have said.
    return f"the service token may check keys of {config.name.split('/')[1]} only; all others are unknown to it"


def reason_text(reason: pb.CheckResponse.Reason.ValueType) -> str:
    """A reason without its prefix."""
    return enum_text(pb.CheckResponse.Reason, reason, "REASON_").upper().replace("-", "_")


def read_secret(text: str) -> str:
    """The secret of an argument; `-` stands for standard input. Raises `Failure`."""
    if text != "-":
        return text
    # What is not a key is for the server to say.
    key = streams.stripped(streams.decode(sys.stdin.buffer.readline(_MAX_KEY_BYTES), "standard input"))
    if not key:
        raise Failure("there is no key on standard input", reason="KEY_REQUIRED")
    return key
