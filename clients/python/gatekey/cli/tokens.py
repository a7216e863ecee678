"""`gatekey tokens`: service tokens, which are the keys of the built-in product."""

from typing import Annotated

import typer
from gatekey_server.domain.secrets import new_secret

from gatekey.cli import keys
from gatekey.cli.output import DryRunOption, Output, OutputOption

app = typer.Typer(
    no_args_is_help=True,
    help="Service tokens. They are keys: `gatekey keys list gatekey system` lists them,"
    " `gatekey keys delete gatekey system KEY` ends one.",
)

_SYSTEM_TENANT = "products/gatekey/tenants/system"
_PREFIX = "gk_"


@app.command()
def create(
    name: keys.NameOption,
    grant: keys.GrantOption = None,
    mode: Annotated[keys.Mode, typer.Option()] = keys.Mode.RESTRICTED,
    expires: keys.ExpiresOption = None,
    ttl: keys.TtlOption = None,
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a service token, and show it this once.

    What it may do is named by the API's own resource names:
    gatekey tokens create --name edge --grant products/heyoo/checks:create
    """
    request = keys.new_key(_SYSTEM_TENANT, name, mode, grant, expires, ttl)
    request.new_machine_user.SetInParent()
    keys.create_key(request, output, "The service token", dry_run=dry_run)


@app.command()
def generate() -> None:
    """Make a token to be given to a new server as GATEKEY_ROOT_TOKEN. Nothing is stored."""
    typer.echo(new_secret(_PREFIX))
