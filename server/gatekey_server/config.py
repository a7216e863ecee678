"""The server's configuration: environment variables, read once, every problem reported by name."""

import base64
import binascii
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from gatekey_server.domain import builtin
from gatekey_server.domain.secrets import MIN_PEPPER_BYTES, is_well_formed

PREFIX = "GATEKEY_"

# Read by the command line, never by the server; the same prefix, so known here.
_CLIENT_VARIABLES = frozenset({"GATEKEY_ADDRESS", "GATEKEY_TOKEN", "GATEKEY_CONFIG"})


class ConfigError(Exception):
    """The configuration cannot be used. `problems` has a line for each variable at fault."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def parse_peppers(text: str) -> dict[int, bytes]:
    """Read peppers, by version: `VERSION:BASE64`, separated by commas or white space.

    Raises `ValueError`, whose text holds no pepper.
    """
    peppers: dict[int, bytes] = {}
    for number, entry in enumerate(text.replace(",", " ").split(), 1):
        version, colon, encoded = entry.partition(":")
        if not colon or not version.isascii() or not version.isdigit() or not 1 <= int(version) <= 32767:
            raise ValueError(f"entry {number} is not VERSION:BASE64 with a version from 1 to 32767")
        try:
            pepper = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            raise ValueError(f"entry {number} is not base 64 after its version") from None
        if len(pepper) < MIN_PEPPER_BYTES:
            raise ValueError(f"entry {number} has fewer than {MIN_PEPPER_BYTES} bytes")
        if int(version) in peppers:
            raise ValueError(f"version {version} is given twice")
        peppers[int(version)] = pepper
    if not peppers:
        raise ValueError("there is no pepper")
    return peppers


def _check_listen(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("is not HOST:PORT")
    return text


def _check_database_url(text: SecretStr) -> SecretStr:
    if not text.get_secret_value().startswith(("postgresql://", "postgres://")):
        raise ValueError("does not start with postgresql://")
    return text


def _check_peppers(text: SecretStr) -> SecretStr:
    parse_peppers(text.get_secret_value())
    return text


def _check_root_token(token: SecretStr) -> SecretStr:
    text = token.get_secret_value()
    if not text.startswith(builtin.TOKEN_PREFIX) or not is_well_formed(text):
        raise ValueError("is not a service token; `gatekey tokens generate` makes one")
    return token


class Settings(BaseSettings):
    """What can be configured. Each field is read from the variable `GATEKEY_` and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, hide_input_in_errors=True)

    listen: Annotated[str, AfterValidator(_check_listen)] = "127.0.0.1:50051"
    """The address to serve on, as HOST:PORT; port 0 picks a free one."""

    database_url: Annotated[SecretStr, AfterValidator(_check_database_url)] | None = None
    """A PostgreSQL to use, versions 15 to 18. Without it, one is started in `data_dir`."""

    data_dir: Path = Path(".gatekey")
    """Where the embedded database and its secrets are kept."""

    peppers: Annotated[SecretStr, AfterValidator(_check_peppers)] | None = None
    """The keys that secrets are hashed under, as VERSION:BASE64, separated by commas; the newest seals."""

    peppers_file: Path | None = None
    """A file that holds `peppers`."""

    root_token: Annotated[SecretStr, AfterValidator(_check_root_token)] | None = None
    """A service token that may do everything; stored at the start if it is not yet."""

    max_connections: int = Field(default=10, ge=2, le=1000)
    """The size of the pool of database connections."""

    statement_timeout_s: float = Field(default=5, gt=0, le=600)
    """How long one statement may take."""

    acquire_timeout_s: float = Field(default=2, gt=0, le=60)
    """How long a request may wait for a free connection."""

    shutdown_grace_s: float = Field(default=10, ge=0, le=600)
    """How long requests that are being answered may take to finish after SIGTERM or Ctrl-C."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important messages to log."""

    log_format: Literal["auto", "console", "json"] = "auto"
    """`auto`: for people on a terminal, else JSON lines."""

    @property
    def embedded(self) -> bool:
        """Whether the server runs a database of its own."""
        return self.database_url is None


def load(environment: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read the configuration; `overrides` (by field name, None for none) win over the environment.

    Raises `ConfigError` with every problem.
    """
    environment = os.environ if environment is None else environment
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | _CLIENT_VARIABLES
    problems = [
        f"{name} is not a variable of Gatekey"
        for name in sorted(environment)
        if name.startswith(PREFIX) and name not in known
    ]
    given = {name: value for name, value in overrides.items() if value is not None}
    settings = None
    try:
        settings = Settings(**given)
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            name = f"{PREFIX}{str(problem['loc'][0]).upper()}"
            problems.append(f"{name}: {problem['msg'].removeprefix('Value error, ')}")
    if settings is not None:
        problems.extend(_combinations(settings))
    if problems or settings is None:
        raise ConfigError(problems)
    return settings


def _combinations(settings: Settings) -> list[str]:
    if settings.peppers is not None and settings.peppers_file is not None:
        return ["GATEKEY_PEPPERS and GATEKEY_PEPPERS_FILE are both set"]
    if not settings.embedded and settings.peppers is None and settings.peppers_file is None:
        return [
            (
                "GATEKEY_PEPPERS (or GATEKEY_PEPPERS_FILE) is required with GATEKEY_DATABASE_URL;"
                " `gatekey peppers generate` makes one"
            )
        ]
    return []
