"""`gatekey serve`, `gatekey migrate` and `gatekey peppers`: the commands that are the server's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatekey.cli import demo, local
from gatekey.cli.problems import Failure

if TYPE_CHECKING:
    from gatekey_server.app import Ready
    from gatekey_server.config import Settings

peppers = typer.Typer(no_args_is_help=True, help="Make the keys that secrets are hashed under.")


def serve(
    listen: Annotated[str | None, typer.Option(help="HOST:PORT; port 0 picks a free one.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the embedded database is kept.")] = None,
    demo_specs: Annotated[
        Path | None,
        typer.Option("--demo", help="A directory of product specs to try: each gets a tenant, an owner and a key."),
    ] = None,
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Without GATEKEY_DATABASE_URL, PostgreSQL is started in the data directory. Options win over
    GATEKEY_LISTEN and GATEKEY_DATA_DIR.
    """
    settings = _settings(listen=listen, data_dir=data_dir)
    from gatekey_server import app  # noqa: PLC0415 - the extra may be missing

    config_file = settings.data_dir / local.FILE_NAME
    config = _read_local(config_file) if settings.embedded else None

    def announce(ready: Ready) -> None:
        token = ready.new_root_token or (config.token if config else None)
        if settings.embedded and settings.root_token is not None:
            token = settings.root_token.get_secret_value()
        if settings.embedded and token is not None:
            local.write(config_file, local.LocalConfig(ready.address, token))
        elif ready.new_root_token is not None:
            print(f"Root token, shown this once:\n\n    {ready.new_root_token}\n", flush=True)  # noqa: T201
        print(f"Gatekey serves on {ready.address}", flush=True)  # noqa: T201
        if demo_specs is not None and token is not None:
            demo.prepare(ready.address, token, demo_specs, settings.data_dir / "demo-keys.toml")

    app.configure_logging(settings)
    wants_root_token = settings.embedded and config is None
    try:
        app.serve(settings, announce, wants_root_token=wants_root_token)
    except app.StartError as error:
        raise Failure(str(error)) from error


def migrate(
    grant_to: Annotated[
        str | None, typer.Option(metavar="ROLE", help="A PostgreSQL role, to get what a server needs and no more.")
    ] = None,
) -> None:
    """Bring the database's schema up to this release. Safe under the previous release, and to repeat."""
    settings = _settings(serving=False)
    if grant_to is not None and settings.embedded:
        raise Failure("--grant-to needs GATEKEY_DATABASE_URL: a server is the superuser of its embedded database")
    from gatekey_server import app  # noqa: PLC0415 - the extra may be missing

    try:
        version = app.migrate(settings, grant_to=grant_to)
    except app.StartError as error:
        raise Failure(str(error)) from error
    print(f"The schema is at version {version}")  # noqa: T201
    if grant_to is not None:
        print(f"The role {grant_to} has what a server needs, and no more")  # noqa: T201


@peppers.command("generate")
def generate_pepper(version: Annotated[int, typer.Option(min=1, max=32767)] = 1) -> None:
    """Print a new pepper, in the form of GATEKEY_PEPPERS."""
    try:
        from gatekey_server import app  # noqa: PLC0415 - the extra may be missing
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    print(app.generate_pepper(version))  # noqa: T201


def _settings(**overrides: Any) -> Settings:
    try:
        from gatekey_server import config  # noqa: PLC0415 - the extra may be missing
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    try:
        return config.load(**overrides)
    except config.ConfigError as error:
        raise Failure("the configuration cannot be used", *error.problems) from error


def _read_local(path: Path) -> local.LocalConfig | None:
    try:
        return local.read(path)
    except local.LocalConfigError as error:
        raise Failure(str(error)) from error


def _missing(error: ModuleNotFoundError) -> Failure:
    return Failure(f"{error.name} is missing: pip install 'gatekey[embedded]'")
