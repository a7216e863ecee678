"""The command line, put together."""

import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from gatekey.cli import audit, checks, keys, machine_users, members, products, streams, tenants, tokens
from gatekey.cli.problems import Failure, complain

_FAILED, _MISUSED, _INTERRUPTED = 1, 2, 130

_GROUP = "gatekey.commands"
"""Entry points that add commands; each is called with the command line."""
_OF_THE_SERVER = ("serve", "migrate", "peppers")

# Typer brings its own click along, and shows of its errors only this one; the class above it stands for all bad usage.
_UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="gatekey",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A gRPC authorization service for API keys.",
    epilog="Commands find the server by GATEKEY_ADDRESS and GATEKEY_TOKEN, or else by the file that `gatekey serve`"
    " leaves: GATEKEY_CONFIG, or .gatekey/client.toml below the current directory. GATEKEY_ACTOR names the member or"
    " machine user on whose behalf; GATEKEY_CA, GATEKEY_CLIENT_CERTIFICATE and GATEKEY_CLIENT_KEY are for TLS.",
)
app.command("check")(checks.check)
app.add_typer(products.app, name="products")
app.add_typer(tenants.app, name="tenants")
app.add_typer(members.app, name="members")
app.add_typer(machine_users.app, name="machine-users")
app.add_typer(keys.app, name="keys")
app.add_typer(tokens.app, name="tokens")
app.add_typer(audit.app, name="audit")


def _needs_server() -> None:
    raise Failure("the server is not installed: pip install 'gatekey-server[embedded]'")


def _add_commands_of_others() -> None:
    others = metadata.entry_points(group=_GROUP)
    for other in others:
        other.load()(app)
    if not others:
        anything = {"ignore_unknown_options": True, "allow_extra_args": True}
        for name in _OF_THE_SERVER:
            app.command(name, hidden=True, context_settings=anything)(_needs_server)


_add_commands_of_others()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gatekey {metadata.version('gatekey')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an unexpected error comes from, as GATEKEY_DEBUG=1 does.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    if debug:
        os.environ["GATEKEY_DEBUG"] = "1"


def run() -> int:
    """Return the exit code of one command, which docs/configuration.md lists. Raises nothing."""
    streams.open_closed()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        result = app(_spelled_out(sys.argv[1:]), standalone_mode=False)
        sys.stdout.flush()
    except Failure as failure:
        _drop_rest()
        complain("error", *failure.lines)
        return failure.exit_code
    except _UsageError as error:
        return _misused(error)
    except (KeyboardInterrupt, typer.Abort):
        _drop_rest()
        return _INTERRUPTED
    except UnicodeEncodeError:
        complain("error", "an argument is not UTF-8")
        return _MISUSED
    except Exception as error:  # noqa: BLE001 - its text and its traceback might hold a secret
        return _failed(error)
    return result if isinstance(result, int) else 0


def _spelled_out(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--json` as the option that it stands for, which is what people try first."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return ["--output=json" if word == "--json" else word for word in options] + [*arguments[len(options) :]]


def _misused(error: Any) -> int:
    message = error.format_message()
    # Without a message, help was asked for by leaving everything out, and has been given.
    if message:
        hint = f"`{error.ctx.command_path} --help` tells more" if error.ctx else "`--help` tells more"
        complain("error", message, hint)
    return _MISUSED


def _drop_rest() -> None:
    """Write what is left of the output; where that fails, what failed has been told or is about to be."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        streams.discard_output()


def _failed(error: BaseException) -> int:
    if isinstance(error, OSError):
        streams.discard_output()
        if not isinstance(error, BrokenPipeError):
            where = f"{error.filename}" if error.filename else "output cannot be written"
            complain("error", f"{where}: {error.strerror or error}")
        return _FAILED
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    kind = type(error).__name__
    if os.environ.get("GATEKEY_DEBUG", "") not in ("", "0", "false"):
        trace = "".join(traceback.format_exception(error)).splitlines()
        complain("error", f"unexpected {kind}: this is a fault of Gatekey", *trace)
        return _FAILED
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = (f"at {Path(frame.filename).name}, line {frame.lineno}, in {frame.name}" for frame in frames)
    hint = "`gatekey --debug …` tells more, which may hold secrets"
    complain("error", f"unexpected {kind}: this is a fault of Gatekey", *places, hint)
    return _FAILED
