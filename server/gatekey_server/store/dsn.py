"""The URL of a PostgreSQL, parsed as by libpq: the meaning of each parameter here, or why it is not supported.

https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
"""

import configparser
import difflib
import getpass
import os
import re
import ssl
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gatekey_server.files import open_regular

_URL = re.compile(
    r"postgres(?:ql)?://"
    r"(?:(?P<user>[^@/:]*)(?::(?P<password>[^@/]*))?@)?"
    r"(?P<hosts>[^/?]*)"
    r"(?:/(?P<dbname>[^?]*))?"
    r"(?:\?(?P<parameters>.*))?",
    re.DOTALL,
)
_HOST = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<name>[^:\[\]]*))(?::(?P<port>.*))?")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_WHOLE = re.compile(r"[+-]?[0-9]{1,9}")
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_LAST_PORT = 65535
_APPLICATION = "gatekey"
_ROOT_CERTIFICATES = Path(".postgresql", "root.crt")

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_TLS_VERSIONS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
_FILES = ("passfile", "sslcert", "sslkey", "sslrootcert", "sslcrl")
_SECRETS = ("password", "sslpassword")

_FOR_DRIVER = (
    *("sslmode", "sslnegotiation", "sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname", "gsslib"),
)
"""The parameters that the driver accepts in libpq's form."""

_ANY_VALUE = (
    *("host", "port", "dbname", "user", "password", "service", "application_name", "fallback_application_name"),
    *("options", "krbsrvname", "sslpassword", *_FILES),
)
_WHOLE_NUMBERS = (
    "connect_timeout",
    # Gatekey drops an idle connection long before these would. They are accepted and not used.
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
)
_VALUES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "sslmode": (_SSL_MODES, ""),
    "sslnegotiation": (("postgres", "direct"), ""),
    "ssl_min_protocol_version": (_TLS_VERSIONS, ""),
    "ssl_max_protocol_version": (_TLS_VERSIONS, ""),
    "target_session_attrs": (
        ("any", "read-write", "primary"),
        "Gatekey writes: of several hosts it uses the one that takes writes",
    ),
    "load_balance_hosts": (("disable", "random"), ""),
    "client_encoding": (("utf8", "utf-8", "UTF8", "UTF-8", "auto"), "Gatekey always uses UTF-8"),
    "channel_binding": (
        ("disable", "prefer"),
        "the driver does not bind channels; leave it out, and use `sslmode=verify-full` with `sslrootcert`",
    ),
    "gssencmode": (("disable", "prefer"), "the driver does not encrypt by GSSAPI; use TLS"),
    "gssdelegation": (("0",), "the driver does not delegate"),
    "gsslib": (("gssapi",), ""),
    "sslcompression": (("0", "1"), ""),
    "sslcertmode": (("allow",), "the driver presents the certificate that it has"),
    "sslsni": (("1",), "the driver always names the host"),
    "replication": (("false", "off", "no", "0"), "Gatekey needs an ordinary connection"),
    "min_protocol_version": (("3.0",), ""),
    "max_protocol_version": (("3.0", "3.2", "latest"), ""),
}
"""The supported values of a parameter, and why others are not."""

_KNOWN = (*_ANY_VALUE, *_WHOLE_NUMBERS, *_VALUES)

_PRISMA, _POOL = "it is Prisma's; leave it out", "leave it out, and use GATEKEY_MAX_CONNECTIONS"
_SEARCH_PATH = "the schema is found by `options=-c%20search_path%3DNAME`"
_REFUSED: Mapping[str, str] = {
    "hostaddr": "the driver cannot use it; put the address in the host's place",
    "sslcrldir": "the driver cannot use it; `sslcrl` names a file",
    "sslkeylogfile": "it would open the connection to others; leave it out",
    "requirepeer": "the driver cannot promise it; leave it out",
    "require_auth": "the driver cannot promise it; leave it out, and use `sslmode=verify-full` with `sslrootcert`",
    "requiressl": "PostgreSQL has it no longer; use `sslmode=require`",
    "scram_client_key": "the driver cannot use it; give a password",
    "scram_server_key": "the driver cannot use it; give a password",
    "servicefile": "set PGSERVICEFILE",
    "schema": f"{_PRISMA}; {_SEARCH_PATH}",
    "currentSchema": _SEARCH_PATH,
    "pgbouncer": f"{_PRISMA}. A pooler must pool sessions",
    "connection_limit": f"{_PRISMA}, and use GATEKEY_MAX_CONNECTIONS",
    "pool_timeout": f"{_PRISMA}, and use GATEKEY_ACQUIRE_TIMEOUT_S",
    "pool_size": _POOL,
    "pool_max_conns": _POOL,
    "statement_timeout": "leave it out, and use GATEKEY_STATEMENT_TIMEOUT_S",
}
"""Unsupported parameters of libpq, and some of other programs, with what to do."""

_VARIABLES: Mapping[str, str] = {
    "PGHOST": "host",
    "PGPORT": "port",
    "PGDATABASE": "dbname",
    "PGUSER": "user",
    "PGPASSWORD": "password",
    "PGPASSFILE": "passfile",
    "PGSERVICE": "service",
    "PGOPTIONS": "options",
    "PGAPPNAME": "application_name",
    "PGCONNECT_TIMEOUT": "connect_timeout",
    "PGCHANNELBINDING": "channel_binding",
    "PGGSSENCMODE": "gssencmode",
    "PGREQUIREAUTH": "require_auth",
    "PGREQUIREPEER": "requirepeer",
    "PGSSLMODE": "sslmode",
    "PGSSLNEGOTIATION": "sslnegotiation",
    "PGSSLCERT": "sslcert",
    "PGSSLKEY": "sslkey",
    "PGSSLROOTCERT": "sslrootcert",
    "PGSSLCRL": "sslcrl",
    "PGSSLCRLDIR": "sslcrldir",
    "PGSSLMINPROTOCOLVERSION": "ssl_min_protocol_version",
    "PGSSLMAXPROTOCOLVERSION": "ssl_max_protocol_version",
    "PGTARGETSESSIONATTRS": "target_session_attrs",
    "PGKRBSRVNAME": "krbsrvname",
    "PGGSSLIB": "gsslib",
}
"""libpq's own variables, which apply to parameters that the URL does not set."""


class DsnError(ValueError):
    """The URL cannot be used. `problems` has a line for each reason. None repeats a password."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Dsn:
    """A parsed URL, for the driver."""

    hosts: tuple[tuple[str | None, int | None], ...]
    """Host names, addresses or socket directories, with ports. None stands for the driver's default."""
    user: str
    password: str | None = field(repr=False)
    database: str
    connect_timeout_s: float | None
    """The timeout for one host."""
    application: str
    """The application name of Gatekey's sessions."""
    options: str | None
    passfile: str | None
    security: Mapping[str, str] = field(repr=False)
    """The parameters about TLS and Kerberos."""

    def arguments(self, host: str | None, port: int | None) -> dict[str, Any]:
        """Return the driver's arguments for a connection to one of the hosts."""
        given: dict[str, Any] = {
            "host": host,
            "port": port,
            "user": self.user,
            "password": self.password,
            "database": self.database,
            "passfile": self.passfile,
        }
        if self.security.get("sslrootcert") == "system":
            given["ssl"] = _tls_context(self.security)
        elif self.security:
            given["dsn"] = f"postgresql://?{urllib.parse.urlencode(self.security, quote_via=urllib.parse.quote)}"
        return {name: value for name, value in given.items() if value is not None}

    def session(self, application: str) -> dict[str, str]:
        """Return the settings of the startup message. The URL's application name replaces Gatekey's own."""
        told = {"application_name": application.replace(_APPLICATION, self.application, 1)}
        return told | ({"options": self.options} if self.options else {})


def parse(url: str, environment: Mapping[str, str] | None = None) -> Dsn:
    """Parse a URL. `environment` has libpq's own variables. Raises `DsnError` with every problem."""
    reader = _Reader(os.environ if environment is None else environment)
    dsn = reader.read(url)
    if dsn is None:
        raise DsnError(list(dict.fromkeys(reader.problems)))
    return dsn


class _Reader:
    """Collects the parameters from their sources, and their problems."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.problems: list[str] = []
        self._environment = environment
        self._given: dict[str, str] = {}
        self._place: dict[str, str] = {}
        self._has_secret_parameter = False

    def read(self, url: str) -> Dsn | None:
        match = self._match(url)
        if match is None:
            return None
        self._take_url(match)
        for variable, name in _VARIABLES.items():
            self._add(name, self._environment.get(variable, ""), place=variable)
        if service := self._given.get("service"):
            self._take_service(service)
        for name in self._given:
            self._check(name)
        self._check_security()
        hosts = self._hosts()
        user = self._given.get("user") or self._own_name()
        return None if self.problems else self._made(hosts, user)

    def _made(self, hosts: list[tuple[str | None, int | None]], user: str) -> Dsn:
        given = self._given
        timeout = int(given.get("connect_timeout", 0))
        return Dsn(
            hosts=tuple(hosts),
            user=user,
            password=given.get("password"),
            database=given.get("dbname") or user,
            connect_timeout_s=timeout if timeout > 0 else None,
            application=given.get("application_name", _APPLICATION),
            options=given.get("options"),
            passfile=given.get("passfile"),
            security={name: given[name] for name in _FOR_DRIVER if name in given},
        )

    def _match(self, url: str) -> re.Match[str] | None:
        match = _URL.fullmatch(url)
        if match is None:
            self.problems.append("does not start with postgresql://")
        elif re.search(r"\s", url):
            self.problems.append("holds white space: a space is written %20")
        elif _PERCENT.search(url):
            self.problems.append("has a `%` without two hexadecimal digits after it, or %00: a `%` is written %25")
        elif "@" in match["hosts"]:
            self.problems.append("has an `@` in the user or the password, which is written %40")
        elif match["user"] is None and "@" in (match["dbname"] or "") + (match["parameters"] or ""):
            # It may be the end of a password, which no message must repeat.
            self.problems.append("has an `@` after the hosts: in a password a `/` is written %2F, elsewhere an `@` %40")
        else:
            return match
        return None

    def _take_url(self, match: re.Match[str]) -> None:
        for parameter in filter(None, (match["parameters"] or "").split("&")):
            name, equals, value = parameter.partition("=")
            if not equals:
                self.problems.append(f"has {self._shown(name)} without a value")
                continue
            name, value = self._decoded(name), self._decoded(value)
            if name == "ssl" and value == "true":
                name, value = "sslmode", "require"
            self._has_secret_parameter |= name in _SECRETS
            # The last of several counts.
            self._given["dbname" if name == "database" else name] = value
        self._take_place(match)

    def _take_place(self, match: re.Match[str]) -> None:
        hosts = [_HOST.fullmatch(host) for host in match["hosts"].split(",")] if match["hosts"] else []
        if not all(hosts):
            self.problems.append("has a host that is none: an IPv6 address is written in brackets, as [::1]")
        found = [host for host in hosts if host]
        self._add("host", ",".join(self._decoded(host["v6"] or host["name"]) for host in found))
        if any(host["port"] for host in found):
            self._add("port", ",".join(host["port"] or "" for host in found))
        for name in ("user", "password", "dbname"):
            self._add(name, self._decoded(match[name] or ""))

    def _take_service(self, service: str) -> None:
        files = [self._environment.get("PGSERVICEFILE"), self._environment.get("PGSYSCONFDIR")]
        home = self._environment.get("HOME")
        candidates = [
            Path(files[0]) if files[0] else Path(home or "/", ".pg_service.conf"),
            *([Path(files[1], "pg_service.conf")] if files[1] else []),
        ]
        parser = configparser.ConfigParser(
            interpolation=None, delimiters=("=",), comment_prefixes=("#",), default_section="", strict=False
        )
        for path in candidates:
            try:
                parser.read(path)
            except (OSError, UnicodeDecodeError, configparser.Error):
                self.problems.append(f"{self._called('service')}: {path} cannot be read")
                return
            if parser.has_section(service):
                for name, value in parser.items(service):
                    self._add(name, value, place=f"`{name}` in {path}")
                return
        places = " or ".join(map(str, candidates))
        self.problems.append(f"{self._called('service')}: there is no such service in {places}")

    def _add(self, name: str, value: str, place: str = "") -> None:
        """Add a value, unless a source of higher priority has set one."""
        if value and name not in self._given:
            self._given[name] = value
            if place:
                self._place[name] = place

    def _check(self, name: str) -> None:
        value = self._given[name]
        called = self._called(name)
        allowed, why = _VALUES.get(name, ((), ""))
        if name in _REFUSED:
            self.problems.append(f"{called} cannot be used: {_REFUSED[name]}")
        elif allowed and value not in allowed:
            must = allowed[0] if len(allowed) == 1 else f"one of {', '.join(allowed)}"
            self.problems.append(f"{called} must be {must}{': ' + why if why else ''}")
        elif name in _WHOLE_NUMBERS and not _WHOLE.fullmatch(value):
            self.problems.append(f"{called} must be a whole number")
        elif name in _FILES and not (name == "sslrootcert" and value == "system"):
            self._check_file(name, called)
        elif name not in _KNOWN:
            close = difflib.get_close_matches(name, _KNOWN, 1, 0.75)
            self.problems.append(
                f"{self._shown(name)} is not a parameter of PostgreSQL"
                + (f": is it `{close[0]}`?" if close else "; a setting goes into `options=-c%20NAME%3DVALUE`")
            )

    def _check_file(self, name: str, called: str) -> None:
        try:
            with open_regular(Path(self._given[name])) as file:
                file.read(1)
        except OSError as error:
            self.problems.append(f"{called}: {error.strerror}")
        except ValueError:
            self.problems.append(f"{called}: is no regular file")

    def _check_security(self) -> None:
        given = self._given
        mode = given.get("sslmode", "prefer")
        if given.get("sslrootcert") == "system":
            mode = given.setdefault("sslmode", "verify-full")
            if mode != "verify-full":
                self.problems.append("`sslrootcert=system` needs `sslmode=verify-full`")
        home = Path(self._environment.get("HOME") or "/")
        if mode.startswith("verify") and "sslrootcert" not in given and not (home / _ROOT_CERTIFICATES).is_file():
            self.problems.append(
                f"`sslmode={mode}` needs `sslrootcert`: a file of certificates, or `system` for those that this"
                " machine trusts"
            )
        if given.get("sslnegotiation") == "direct" and mode in _SSL_MODES[:3]:
            self.problems.append("`sslnegotiation=direct` needs `sslmode=require` or more")
        if self.problems or mode == "disable" or not given.keys() & set(_FILES[1:]):
            return
        try:
            _tls_context(given)
        except (OSError, ValueError):
            files = ", ".join(f"`{name}`" for name in _FILES[1:] if name in given)
            self.problems.append(f"{files}: not certificates and a key in PEM form that belong together")

    def _hosts(self) -> list[tuple[str | None, int | None]]:
        names: list[str | None] = list(self._given["host"].split(",")) if "host" in self._given else [None]
        ports = self._given.get("port", "").split(",")
        if "" in names:
            self.problems.append("names an empty host")
        if not all(port == "" or _is_port(port) for port in ports):
            self.problems.append(f"{self._place.get('port', 'has a port that')} is no number from 1 to {_LAST_PORT}")
            return []
        if len(ports) not in {1, len(names)}:
            self.problems.append(f"has {len(ports)} ports for {len(names)} hosts")
            return []
        ports *= len(names) // len(ports)
        return [(name, int(port) if port else None) for name, port in zip(names, ports, strict=True)]

    def _own_name(self) -> str:
        try:
            return getpass.getuser()
        except (KeyError, OSError):
            # A container's user id often has no name.
            self.problems.append(f"names no user, and the user id {os.getuid()} of this process has no name")
            return ""

    def _decoded(self, text: str) -> str:
        try:
            return urllib.parse.unquote(text, errors="strict")
        except UnicodeDecodeError:
            self.problems.append("has percent-encoded bytes that are not UTF-8")
            return ""

    def _shown(self, name: str) -> str:
        # After a password among the parameters, it may be the rest of the password.
        is_tellable = _WORD.fullmatch(name) and not self._has_secret_parameter
        return f"`{name}`" if is_tellable else "a parameter"

    def _called(self, name: str) -> str:
        value = self._given[name]
        shown = f"`{name}={value}`" if name not in _SECRETS and _is_tellable(value) else f"`{name}`"
        return f"{self._place[name]}: {shown}" if name in self._place else shown


def _is_tellable(value: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_./-]{1,200}", value) is not None


def _is_port(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,5}", text) is not None and 1 <= int(text) <= _LAST_PORT


def _tls_context(security: Mapping[str, str]) -> ssl.SSLContext:
    """Return the TLS context of the files. Raises `OSError` or `ValueError`."""
    root = security.get("sslrootcert")
    context = ssl.create_default_context(cafile=None if root == "system" else root)
    if "sslcrl" in security:
        context.load_verify_locations(cafile=security["sslcrl"])
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    if "sslcert" in security:
        # Without a password, OpenSSL would prompt on the terminal.
        password = security.get("sslpassword", "")
        context.load_cert_chain(security["sslcert"], security.get("sslkey"), lambda: password)
    for name, attribute in (("min", "minimum_version"), ("max", "maximum_version")):
        if version := security.get(f"ssl_{name}_protocol_version"):
            setattr(context, attribute, ssl.TLSVersion[version.replace(".", "_")])
    context.set_alpn_protocols(["postgresql"])
    return context
