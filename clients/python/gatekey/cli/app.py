"""The command line, put together."""

import sys

import click
import typer

from gatekey.cli import server
from gatekey.cli.problems import Failure

app = typer.Typer(
    name="gatekey",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A gRPC authorization service for API keys.",
)
app.command("serve")(server.serve)
app.command("migrate")(server.migrate)
app.add_typer(server.peppers, name="peppers")


def run() -> int:
    """Run one command; answers its exit code: 0, 1 for a failure, 2 for bad usage, 3 for a denied check."""
    try:
        result = app(standalone_mode=False)
    except Failure as failure:
        for line in (f"error: {failure.message}", *(f"  {more}" for more in failure.more)):
            print(line, file=sys.stderr)  # noqa: T201
        return 1
    except click.UsageError as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        return 130
    return result if isinstance(result, int) else 0
