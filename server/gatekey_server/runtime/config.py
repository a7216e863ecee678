"""The server's configuration: environment variables, read once, every problem reported by name."""

import base64
import binascii
import os
import re
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography import x509
from gatekey.core import builtin
from gatekey.core.names import ApiKeyName, parse_key_id
from gatekey.core.secrets import MIN_PEPPER_BYTES, is_well_formed
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gatekey_server.rpc import certificates
from gatekey_server.runtime import variables
from gatekey_server.runtime.variables import LAST_PORT, Address
from gatekey_server.store import dsn

_TOKENS = f"{builtin.SYSTEM_TENANT}/apiKeys/"
_DNS_NAME = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+")

# Read by the command line only. They have the same prefix, so they are known here.
_CLIENT_VARIABLES = frozenset(
    f"GATEKEY_{name}"
    for name in ("ADDRESS", "TOKEN", "CONFIG", "ACTOR", "CA", "CLIENT_CERTIFICATE", "CLIENT_KEY", "DEBUG")
)


class ConfigError(Exception):
    """The configuration is invalid. `problems` has a line for each problem, which names the variable."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def parse_peppers(text: str) -> dict[int, bytes]:
    """Return peppers by version, from `VERSION:BASE64` entries that are separated by commas or white space.

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


def parse_tls_callers(text: str) -> dict[x509.GeneralName, ApiKeyName]:
    """Return the service tokens that certificates stand for, from `NAME=TOKEN` entries.

    Entries are separated by commas or white space.

    NAME is a whole subject alternative name: a URI if it contains a colon, else a DNS name. TOKEN is the resource name
    of the token, after the last `=`. Raises `ValueError`.
    """
    callers: dict[x509.GeneralName, ApiKeyName] = {}
    for number, entry in enumerate(text.replace(",", " ").split(), 1):
        name_text, equals, token = entry.rpartition("=")
        if not equals:
            raise ValueError(f"entry {number} is not NAME=TOKEN")
        key_id = token.removeprefix(_TOKENS)
        if key_id == token or parse_key_id(key_id) is None:
            raise ValueError(f"entry {number} names no service token after the last `=`: {_TOKENS}key_… is required")
        name = _parse_alternative_name(name_text, number)
        if name in callers:
            raise ValueError(f"entry {number} names {name_text}, which was named before")
        callers[name] = ApiKeyName(builtin.SYSTEM_TENANT, key_id)
    if not callers:
        raise ValueError("there is no caller")
    return callers


def _parse_alternative_name(text: str, number: int) -> x509.GeneralName:
    if _URI.fullmatch(text):
        return x509.UniformResourceIdentifier(text)
    if _DNS_NAME.fullmatch(text):
        return x509.DNSName(text)
    raise ValueError(f"entry {number} has neither a URI nor a DNS name before its last `=`; there are no wildcards")


def _check_tls_callers(text: str) -> str:
    parse_tls_callers(text)
    return text


def _check_listen(text: str) -> str:
    Address.parse(text)
    return text


def _check_transport(text: object) -> object:
    if text == "native":
        raise ValueError(
            "`native` was removed: pygrpc-native had no author, no TLS and no limit on messages. Use `auto` or `grpcio`"
        )
    return text


def _check_database_url(text: SecretStr) -> SecretStr:
    dsn.parse(text.get_secret_value())
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
    """The settings of a server. Each field is read from the variable `GATEKEY_` plus its name in capitals."""

    model_config = SettingsConfigDict(env_prefix=variables.PREFIX, frozen=True, hide_input_in_errors=True)

    listen: Annotated[str, AfterValidator(_check_listen)] = "127.0.0.1:50051"
    """The address to serve on, as HOST:PORT; port 0 picks a free one."""

    workers: int = Field(default=1, ge=1, le=256)
    """How many processes serve on that address."""

    transport: Annotated[Literal["auto", "grpcio"], BeforeValidator(_check_transport)] = "auto"
    """The transport. There is one: `grpcio`, which `auto` chooses."""

    metrics_listen: Annotated[str, AfterValidator(_check_listen)] | None = None
    """The address of the Prometheus metrics over HTTP, as HOST:PORT. Each further worker takes the next port."""

    tls_certificate: Path | None = None
    """A PEM file: the server's certificate, followed by its intermediates."""

    tls_key: Path | None = None
    """A PEM file: the certificate's private key. Others must not be able to read it."""

    tls_client_ca: Path | None = None
    """A PEM file of root certificates. If set, every client must present a certificate signed by one of them."""

    tls_callers: Annotated[str, AfterValidator(_check_tls_callers)] | None = None
    """The service tokens that client certificates stand for, as NAME=TOKEN, separated by commas."""

    insecure: bool = False
    """Serve other machines without TLS, because a proxy in between encrypts."""

    database_url: Annotated[SecretStr, AfterValidator(_check_database_url)] | None = None
    """The URL of a PostgreSQL, versions 15 to 18. Without it, one is started in `data_dir`."""

    data_dir: Path = Path(".gatekey")
    """The directory of the embedded database and its secrets."""

    peppers: Annotated[SecretStr, AfterValidator(_check_peppers)] | None = None
    """The keys that secrets are hashed under, as VERSION:BASE64, separated by commas. The newest hashes new secrets."""

    peppers_file: Path | None = None
    """A file that holds `peppers`."""

    root_token: Annotated[SecretStr, AfterValidator(_check_root_token)] | None = None
    """A service token that may do everything. It is stored at the start if it is not stored yet."""

    max_connections: int = Field(default=16, ge=2, le=1000)
    """The size of the pool of database connections. Each kind of work has a share of them."""

    statement_timeout_s: float = Field(default=5, gt=0, le=600)
    """How long one statement may take."""

    acquire_timeout_s: float = Field(default=2, gt=0, le=60)
    """How long a request may wait for a free connection."""

    migrate_lock_timeout_s: float = Field(default=60, ge=0, le=86400)
    """How long `migrate` waits for another migration to end."""

    cache_entries: int = Field(default=1_000_000, ge=1000, le=100_000_000)
    """How many secrets' snapshots a process caches."""

    cache_mb: int = Field(default=256, ge=1, le=1_000_000)
    """How much memory these may take per process, in MB."""

    tenant_retention_days: float = Field(default=30, ge=0, le=3650)
    """How long a deleted tenant can be undeleted, until it is purged."""

    key_retention_days: float = Field(default=30, ge=0, le=3650)
    """How long an expired or revoked key can still be read, until it is purged."""

    usage_flush_s: float = Field(default=10, gt=0, le=3600)
    """How often the last uses of keys are written. A crash can lose those of one interval."""

    maintenance_interval_s: float = Field(default=60, gt=0, le=86400)
    """How often maintenance looks for deleted tenants, ended keys and old request ids to purge."""

    shutdown_grace_s: float = Field(default=10, ge=0, le=600)
    """How long requests in progress may take to finish after SIGTERM or Ctrl-C."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level to log."""

    log_format: Literal["auto", "console", "json"] = "auto"
    """`auto`: for people on a terminal, else JSON lines."""

    @field_validator("*", mode="before")
    @classmethod
    def _clean(cls, value: object) -> object:
        return variables.clean(value) if isinstance(value, str) else value

    @property
    def tls_files(self) -> certificates.Files:
        """The paths of the TLS files."""
        return certificates.Files(self.tls_certificate, self.tls_key, self.tls_client_ca)

    @property
    def embedded(self) -> bool:
        """Whether the server runs a database of its own."""
        return self.database_url is None


def load(environment: Mapping[str, str] | None = None, *, serving: bool = True, **overrides: Any) -> Settings:
    """Return the settings. `overrides`, by field name, win over the environment; None stands for no override.

    Without `serving`, the settings of TLS may be missing, or name files that do not exist. Raises `ConfigError` with
    every problem.
    """
    environment = os.environ if environment is None else environment
    known = {f"{variables.PREFIX}{name.upper()}" for name in Settings.model_fields} | _CLIENT_VARIABLES
    problems = variables.unknown(environment, known)
    given = {name: value for name, value in overrides.items() if value is not None}
    unusable: set[str] = set()
    try:
        settings = Settings(**given)
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            field = str(problem["loc"][0])
            unusable.add(field)
            # One variable may have several problems, on a line each.
            lines = problem["msg"].removeprefix("Value error, ").splitlines()
            problems.extend(f"{variables.PREFIX}{field.upper()}: {line}" for line in lines)
        # Validate the other variables as well, to report all problems at once.
        settings = Settings(**given | {field: Settings.model_fields[field].default for field in unusable})
    is_set = {field for field in Settings.model_fields if getattr(settings, field) is not None} | unusable
    problems.extend(_pepper_problems(is_set))
    if "database_url" not in is_set:
        problems.extend(_data_dir_problems(settings.data_dir))
    if serving:
        problems.extend(_port_problems(settings))
        problems.extend(_tls_problems(settings, is_set))
        problems.extend(certificates.problems(settings.tls_files))
    if problems:
        raise ConfigError(problems)
    return settings


def _tls_problems(settings: Settings, is_set: Set[str]) -> list[str]:
    problems = []
    if "tls_certificate" in is_set and "tls_key" not in is_set:
        problems.append("GATEKEY_TLS_KEY is required with GATEKEY_TLS_CERTIFICATE")
    if "tls_key" in is_set and "tls_certificate" not in is_set:
        problems.append("GATEKEY_TLS_CERTIFICATE is required with GATEKEY_TLS_KEY")
    if "tls_client_ca" in is_set and not is_set & {"tls_certificate", "tls_key"}:
        problems.append("GATEKEY_TLS_CERTIFICATE and GATEKEY_TLS_KEY are required with GATEKEY_TLS_CLIENT_CA")
    if "tls_callers" in is_set and "tls_client_ca" not in is_set:
        problems.append("GATEKEY_TLS_CLIENT_CA is required with GATEKEY_TLS_CALLERS")
    if is_set & {"tls_certificate", "tls_key", "tls_client_ca"}:
        if settings.insecure:
            problems.append(
                "GATEKEY_INSECURE is true, but GATEKEY_TLS_CERTIFICATE, GATEKEY_TLS_KEY or GATEKEY_TLS_CLIENT_CA is set"
            )
    elif not settings.insecure and not Address.parse(settings.listen).is_loopback:
        problems.append(
            f"GATEKEY_LISTEN: {settings.listen} serves other machines, and without TLS everyone in between reads the"
            " keys: set GATEKEY_TLS_CERTIFICATE and GATEKEY_TLS_KEY, or GATEKEY_INSECURE=true where something else,"
            " such as a mesh's sidecar, encrypts"
        )
    return problems


def _port_problems(settings: Settings) -> list[str]:
    if settings.metrics_listen is None:
        return []
    listen, metrics = Address.parse(settings.listen), Address.parse(settings.metrics_listen)
    if metrics.port == 0:
        return []
    last = metrics.port + settings.workers - 1
    if last > LAST_PORT:
        return [f"GATEKEY_METRICS_LISTEN: with {settings.workers} workers the last port would be {last}"]
    if metrics.port <= listen.port <= last:
        return [f"GATEKEY_METRICS_LISTEN: takes the port {listen.port}, which is that of GATEKEY_LISTEN"]
    return []


def _data_dir_problems(data_dir: Path) -> list[str]:
    path = data_dir.absolute()
    existing = next(path for path in (path, *path.parents) if os.path.lexists(path))
    if not existing.is_dir():
        return [f"GATEKEY_DATA_DIR: {existing} is not a directory"]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [f"GATEKEY_DATA_DIR: this user may not write to {existing}. GATEKEY_DATABASE_URL needs no directory"]
    return []


def _pepper_problems(is_set: Set[str]) -> list[str]:
    if {"peppers", "peppers_file"} <= is_set:
        return ["GATEKEY_PEPPERS and GATEKEY_PEPPERS_FILE are both set"]
    if "database_url" in is_set and not is_set & {"peppers", "peppers_file"}:
        return [
            (
                "GATEKEY_PEPPERS (or GATEKEY_PEPPERS_FILE) is required with GATEKEY_DATABASE_URL;"
                " `gatekey peppers generate` makes one"
            )
        ]
    return []
