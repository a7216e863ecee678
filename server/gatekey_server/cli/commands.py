"""`gatekey serve`, `gatekey migrate` and `gatekey peppers`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from gatekey._connection import TlsMaterial
from gatekey.cli import local, streams
from gatekey.cli.connection import Endpoint
from gatekey.cli.problems import Failure, complain

from gatekey_server.cli import demo

if TYPE_CHECKING:
    from gatekey_server.runtime.app import Ready
    from gatekey_server.runtime.config import Settings

peppers = typer.Typer(no_args_is_help=True, help="Make the keys that secrets are hashed under.")


def serve(
    listen: Annotated[str | None, typer.Option(help="HOST:PORT; port 0 picks a free one.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the embedded database is kept.")] = None,
    workers: Annotated[int | None, typer.Option(help="Number of worker processes.")] = None,
    demo_specs: Annotated[
        Path | None,
        typer.Option("--demo", help="A directory of product specs to try: each gets a tenant, an owner and a key."),
    ] = None,
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Without GATEKEY_DATABASE_URL, PostgreSQL is started in the data directory. Options win over
    GATEKEY_LISTEN, GATEKEY_DATA_DIR and GATEKEY_WORKERS.
    """
    settings = _settings(listen=listen, data_dir=data_dir, workers=workers)
    from gatekey_server.runtime import app, logs  # noqa: PLC0415 - slow, and not for `--help`

    config_file = settings.data_dir / local.FILE_NAME
    config = _read_local(config_file) if settings.embedded else None
    certificate = _certificate(settings)
    host = _host_for_clients(settings.listen, certificate)

    def announce(ready: Ready) -> None:
        given = settings.root_token.get_secret_value() if settings.root_token is not None else None
        token = given or ready.new_root_token or (config.token if config else None)
        address = f"{host}:{ready.address.rpartition(':')[2]}"
        if settings.embedded and token is not None:
            local.write(config_file, local.LocalConfig(address, token))
        elif ready.new_root_token is not None and not _say(
            f"Root token, shown this once:\n\n    {ready.new_root_token}\n"
        ):
            complain(
                "error",
                "a root token was made, but it could not be written to standard output (SECRET_LOST)",
                "for another one, set GATEKEY_ROOT_TOKEN at the next start to what `gatekey tokens generate` prints;",
                "with it, `gatekey keys list gatekey system` names the lost one, and `gatekey keys delete` ends it",
            )
        _say(f"Gatekey serves on {ready.address}")
        if demo_specs is None:
            return
        if (obstacle := _obstacle_to_demo(settings, host, token, certificate)) is not None:
            complain("warning", f"there is no demo: {obstacle}")
            return
        endpoint = Endpoint(address, token or "", "this server", tls=TlsMaterial(certificate) if certificate else None)
        environment = _environment(settings, address, ready.new_root_token)
        demo.prepare(endpoint, environment, demo_specs, settings.data_dir / "demo-keys.toml")

    logs.configure(settings)
    wants_root_token = settings.embedded and config is None
    try:
        app.serve(settings, announce, wants_root_token=wants_root_token)
    except app.StartError as error:
        raise Failure(*str(error).splitlines()) from error


def _say(text: str) -> bool:
    """Return whether the text could be printed. A server continues where it could not."""
    try:
        print(text, flush=True)  # noqa: T201
    except OSError:
        streams.discard_output()
        return False
    return True


def migrate(
    grant_to: Annotated[
        str | None, typer.Option(metavar="ROLE", help="A PostgreSQL role, to get what a server needs and no more.")
    ] = None,
    lock_timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="How long to wait for another migration to end.")
    ] = None,
) -> None:
    """Bring the database's schema up to this release. Safe under the previous release, and to repeat."""
    settings = _settings(serving=False, migrate_lock_timeout_s=lock_timeout)
    if grant_to is not None and settings.embedded:
        raise Failure("--grant-to needs GATEKEY_DATABASE_URL: a server is the superuser of its embedded database")
    from gatekey_server.runtime import app  # noqa: PLC0415 - slow, and not for `--help`

    try:
        version = app.migrate(settings, grant_to=grant_to, tell=lambda line: complain("note", line))
    except app.StartError as error:
        raise Failure(*str(error).splitlines()) from error
    print(f"The schema is at version {version}")  # noqa: T201
    if grant_to is not None:
        print(f"The role {grant_to} has what a server needs, and no more")  # noqa: T201


def _certificate(settings: Settings) -> bytes | None:
    if settings.tls_certificate is None:
        return None
    from gatekey_server.rpc import certificates  # noqa: PLC0415 - slow, and not for `--help`

    try:
        return certificates.read(settings.tls_files).certificates
    except certificates.MaterialError as error:
        raise Failure("the configuration cannot be used", *error.problems) from error


def _host_for_clients(listen: str, certificate: bytes | None) -> str:
    """The host by which clients on this machine find the server, and by which they can trust its certificate."""
    from gatekey_server.rpc import certificates  # noqa: PLC0415 - slow, and not for `--help`

    host = listen.rpartition(":")[0]
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 - what is not bound to here
    if certificate is None or host not in ("127.0.0.1", "[::1]"):
        return host
    return next((name for name in (host, "localhost") if certificates.is_good_for(certificate, name)), host)


def _obstacle_to_demo(settings: Settings, host: str, token: str | None, certificate: bytes | None) -> str | None:
    from gatekey_server.rpc import certificates  # noqa: PLC0415 - slow, and not for `--help`

    if token is None:
        return "it needs the root token, which only the first start knows; GATEKEY_ROOT_TOKEN gives it to this one"
    if settings.tls_client_ca is not None:
        return "it has no certificate of its own, and GATEKEY_TLS_CLIENT_CA demands one of every client"
    if certificate is not None and not certificates.is_good_for(certificate, host):
        return f"the certificate in GATEKEY_TLS_CERTIFICATE is not for {host}, where it would find the server"
    return None


def _environment(settings: Settings, address: str, new_root_token: str | None) -> list[str]:
    """The variables that commands need in order to find this server from the current directory."""
    words = []
    config_file = settings.data_dir / local.FILE_NAME
    if not settings.embedded:
        # Only what this start has shown already is shown again.
        words += [f"GATEKEY_ADDRESS={address}", f"GATEKEY_TOKEN={new_root_token or '$GATEKEY_ROOT_TOKEN'}"]
    elif config_file.absolute() != local.DEFAULT_PATH.absolute():
        words.append(f"GATEKEY_CONFIG={shlex.quote(str(config_file))}")
    if settings.tls_certificate is not None:
        words.append(f"GATEKEY_CA={shlex.quote(str(settings.tls_certificate))}")
    return words


@peppers.command("generate")
def generate_pepper(version: Annotated[int, typer.Option(min=1, max=32767)] = 1) -> None:
    """Print a new pepper, in the form of GATEKEY_PEPPERS."""
    from gatekey_server.runtime import peppers as made  # noqa: PLC0415 - slow, and not for `--help`

    print(made.generate(version))  # noqa: T201


def _settings(**overrides: Any) -> Settings:
    from gatekey_server.runtime import config  # noqa: PLC0415 - slow, and not for `--help`

    try:
        return config.load(**overrides)
    except config.ConfigError as error:
        raise Failure("the configuration cannot be used", *error.problems) from error


def _read_local(path: Path) -> local.LocalConfig | None:
    try:
        return local.read(path)
    except local.LocalConfigError as error:
        raise Failure(str(error)) from error
