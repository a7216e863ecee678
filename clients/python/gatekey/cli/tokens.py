"""`gatekey tokens`: service tokens, which are the keys of the built-in product."""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from gatekey import _methods as methods
from gatekey.cli import keys
from gatekey.cli.calls import Connection, connect
from gatekey.cli.output import DryRunOption, EtagOption, Output, OutputOption, id_of, show_pages
from gatekey.cli.problems import Failure, complain
from gatekey.core.secrets import new_secret
from gatekey.v1 import api_key_service_pb2, product_service_pb2, types_pb2

app = typer.Typer(
    no_args_is_help=True,
    help="Service tokens. They are keys of the tenant `system` of the product `gatekey`: what is not here is in"
    " `gatekey keys`.",
)

_SYSTEM_TENANT = "products/gatekey/tenants/system"
_PREFIX = "gk_"

_TokenId = Annotated[str, typer.Argument(metavar="KEY", help="The id, or the full name.", show_default=False)]


@app.command()
def create(
    name: keys.NameOption,
    grant: keys.GrantOption = None,
    mode: Annotated[Any, keys.MODE_OPTION] = "restricted",
    description: keys.DescriptionOption = None,
    label: keys.LabelOption = None,
    expires: keys.ExpiresOption = None,
    ttl: keys.TtlOption = None,
    actor_required: Annotated[
        bool,
        typer.Option("--actor-required", help="It changes things below tenants only on somebody's behalf, for good."),
    ] = False,
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a service token, and show it this once.

    What it may do is named by the API's own resource names:
    gatekey tokens create --name edge --grant products/heyoo/checks:create
    """
    request = keys.new_key(_SYSTEM_TENANT, name, mode, grant, expires, ttl)
    keys.describe(request.api_key, description, label)
    request.api_key.actor_required = actor_required
    request.new_machine_user.SetInParent()

    def look(gatekey: Connection) -> None:
        _warn_of_unknown_products(gatekey, request.api_key.grants)

    keys.create_key(request, output, "The service token", dry_run=dry_run, look=look)


@app.command("list")
def list_(output: OutputOption = Output.TABLE) -> None:
    """List the service tokens, with what they may do and when they were last used."""
    request = api_key_service_pb2.ListApiKeysRequest(parent=_SYSTEM_TENANT)
    with connect() as gatekey:
        show_pages(gatekey.pages(methods.LIST_API_KEYS, request), "api_keys", output, keys.TOKENS)


@app.command()
def rotate(
    token: _TokenId,
    grace: keys.GraceOption = None,
    etag: EtagOption = "",
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Give a service token a new secret."""
    keys.rotate(_ids(token), grace, etag, dry_run, output)


@app.command()
def delete(
    token: _TokenId, etag: EtagOption = "", dry_run: DryRunOption = False, output: OutputOption = Output.TABLE
) -> None:
    """Delete a service token: it stops working at once."""
    keys.delete(_ids(token), etag, dry_run, output)


@app.command()
def generate() -> None:
    """Make a token to be given to a new server as GATEKEY_ROOT_TOKEN. Nothing is stored."""
    typer.echo(new_secret(_PREFIX))


def _ids(token: str) -> list[str]:
    return [token] if token.startswith("products/") else [_SYSTEM_TENANT, token]


def _warn_of_unknown_products(gatekey: Connection, grants: Sequence[types_pb2.Grant]) -> None:
    """Warn of a product that does not exist: grants may come before their product, and may be misspelt."""
    paths = [grant.resource.split("/") for grant in grants]
    products = dict.fromkeys(path[1] for path in paths if path[0] == "products" and len(path) > 1 and path[1] != "*")
    for product in products:
        try:
            gatekey.call(methods.GET_PRODUCT, product_service_pb2.GetProductRequest(name=f"products/{product}"))
        except Failure as failure:
            # Whoever may not read products is not told which there are.
            if failure.reason == "PRODUCT_NOT_FOUND":
                complain("warning", f"there is no product `{product}`{_hint(gatekey, product)}")


def _hint(gatekey: Connection, product: str) -> str:
    try:
        pages = list(gatekey.pages(methods.LIST_PRODUCTS, product_service_pb2.ListProductsRequest()))
    except Failure:
        return ""
    similar = difflib.get_close_matches(product, [id_of(each) for page in pages for each in page.products], n=1)
    return f"; is it `{similar[0]}`?" if similar else ""
