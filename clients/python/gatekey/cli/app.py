"""The command line, put together."""

import contextlib
import io
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import typer

from gatekey.cli import audit, checks, keys, machine_users, members, products, server, tenants, tokens
from gatekey.cli.problems import Failure, Misuse, complain

_FAILED, _MISUSED, _INTERRUPTED = 1, 2, 130

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
app.command("serve")(server.serve)
app.command("migrate")(server.migrate)
app.command("check")(checks.check)
app.add_typer(products.app, name="products")
app.add_typer(tenants.app, name="tenants")
app.add_typer(members.app, name="members")
app.add_typer(machine_users.app, name="machine-users")
app.add_typer(keys.app, name="keys")
app.add_typer(tokens.app, name="tokens")
app.add_typer(audit.app, name="audit")
app.add_typer(server.peppers, name="peppers")


def run() -> int:
    """Run one command; answers its exit code: 0, 1 for a failure, 2 for bad usage, 3 for a denied check."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        result = app(standalone_mode=False)
        sys.stdout.flush()
    except Failure as failure:
        complain("error", *failure.lines)
        return _MISUSED if isinstance(failure, Misuse) else _FAILED
    except _UsageError as error:
        return _misused(error)
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except UnicodeEncodeError:
        complain("error", "an argument is not UTF-8")
        return _MISUSED
    except Exception as error:  # noqa: BLE001 - its text and its traceback might hold a secret
        return _failed(error)
    return result if isinstance(result, int) else 0


def _misused(error: Any) -> int:
    message = error.format_message()
    # Without a message, help was asked for by leaving everything out, and has been given.
    if message:
        hint = f"`{error.ctx.command_path} --help` tells more" if error.ctx else "`--help` tells more"
        complain("error", message, hint)
    return _MISUSED


def _failed(error: BaseException) -> int:
    if isinstance(error, OSError):
        # What could not be written is still in the buffer, and would be complained of once more.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            complain("error", f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror))
        return _FAILED
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = (f"at {Path(frame.filename).name}, line {frame.lineno}, in {frame.name}" for frame in frames)
    complain("error", f"unexpected {type(error).__name__}: this is a fault of Gatekey", *places)
    return _FAILED
