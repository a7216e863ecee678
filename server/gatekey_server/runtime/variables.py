"""Environment variables as text: which are Gatekey's, and the form of their values."""

import difflib
import ipaddress
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from gatekey._files import read_bounded
from gatekey._secret_text import bare, in_quotes

PREFIX = "GATEKEY_"

LAST_PORT = 65535
_MEANT = {"HOST": "LISTEN", "PORT": "LISTEN", "ADDR": "LISTEN", "BIND": "LISTEN", "DSN": "DATABASE_URL"}


class Address(NamedTuple):
    """An address to listen on."""

    host: str
    """Without brackets."""
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Parse HOST:PORT. An IPv6 address is in brackets. Raises `ValueError`."""
        host, colon, port = text.rpartition(":")
        if not colon or not re.fullmatch(r"[0-9]+", port):
            raise ValueError("is not HOST:PORT, for example 127.0.0.1:50051")
        if int(port) > LAST_PORT:
            raise ValueError(f"is not HOST:PORT: a port is at most {LAST_PORT}, and 0 picks a free one")
        if host in ("", "*"):
            raise ValueError(f"is not HOST:PORT: 0.0.0.0:{port} is every IPv4 address, [::]:{port} every address")
        bracketed = re.fullmatch(r"\[(.*)\]", host)
        if bracketed is None and ":" in host:
            raise ValueError(f"is not HOST:PORT: an IPv6 address is written in brackets, as [::1]:{port}")
        if bracketed is not None and not _is_ip(bracketed[1], version=6):
            raise ValueError("is not HOST:PORT: there is no IPv6 address in the brackets")
        if bracketed is None and not re.fullmatch(r"[A-Za-z0-9_.-]+", host):
            raise ValueError("is not HOST:PORT: the host is neither an address nor a name")
        return cls(bracketed[1] if bracketed else host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"


def clean(text: str) -> str:
    """Return the text without surrounding white space and byte order mark, which editors and shells add.

    Raises `ValueError`, without repeating the text, for an empty value, surrounding quotes and invisible characters,
    which are in a value by mistake.
    """
    stripped = bare(text)
    if not stripped:
        raise ValueError("is set, but empty: give it a value, or do not set it")
    if in_quotes(stripped):
        raise ValueError("is in quotes, which would be a part of the value: leave them out")
    for character in stripped:
        # Line breaks and tabs may separate the entries of a list.
        if character not in " \t\r\n" and unicodedata.category(character)[0] in "CZ":
            raise ValueError(f"holds a character that cannot be seen, {_code_point(character)}: remove it")
    return stripped


def read_file(path: Path) -> str:
    """Return a value from a file. Raises `OSError`, or `ValueError` without repeating the content of the file."""
    try:
        return clean(read_bounded(path).decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("is not text in UTF-8: write the file anew in that encoding") from None


def unknown(environment: Mapping[str, str], known: Collection[str]) -> list[str]:
    """Return a line for each variable that looks like one of Gatekey's and is none."""
    names = (name for name in sorted(environment) if name.startswith(PREFIX) and name not in known)
    return [
        f"{name} is not a variable of Gatekey{_suggestion(name, known)}"
        for name in names
        if not is_service_link(name, environment[name])
    ]


def is_service_link(name: str, value: str) -> bool:
    """Whether this is a variable that Kubernetes sets in each pod for a Service named `gatekey…` in its namespace.

    Both the name and the value must have the form that Kubernetes gives them, so that no setting of Gatekey is
    mistaken for one.
    """
    return any(re.fullmatch(pattern, name) and check(value) for pattern, check in _SERVICE_LINKS)


def _suggestion(name: str, known: Collection[str]) -> str:
    meant = _MEANT.get(name.removeprefix(PREFIX))
    close = [f"{PREFIX}{meant}"] if meant else difflib.get_close_matches(name, sorted(known), 1, 0.75)
    return f": is it {close[0]}?" if close else ""


def _code_point(character: str) -> str:
    name = unicodedata.name(character, "")
    return f"U+{ord(character):04X} {name}".strip()


def _is_ip(text: str, version: int | None = None) -> bool:
    try:
        return version in (None, ipaddress.ip_address(text.partition("%")[0]).version)
    except ValueError:
        return False


def _is_cluster_ip(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_unspecified or address.is_loopback or address.is_multicast)


def _is_port(text: str) -> bool:
    return re.fullmatch(r"[1-9][0-9]{0,4}", text) is not None and int(text) <= LAST_PORT


def _is_service_url(text: str) -> bool:
    match = re.fullmatch(r"(?:tcp|udp|sctp)://(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<v4>[0-9.]+)):(?P<port>[0-9]+)", text)
    return match is not None and _is_cluster_ip(match["v6"] or match["v4"]) and _is_port(match["port"])


def _service_links(service: str) -> Iterable[tuple[str, Callable[[str], bool]]]:
    port = f"{service}_PORT_[1-9][0-9]{{0,4}}_(?:TCP|UDP|SCTP)"
    return (
        (f"{service}_SERVICE_HOST", _is_cluster_ip),
        (f"{service}_SERVICE_PORT(?:_[A-Z0-9_]+)?", _is_port),
        (f"{service}_PORT", _is_service_url),
        (port, _is_service_url),
        (f"{port}_PROTO", lambda value: value in ("tcp", "udp", "sctp")),
        (f"{port}_PORT", _is_port),
        (f"{port}_ADDR", _is_cluster_ip),
    )


_SERVICE_LINKS = tuple(_service_links(r"GATEKEY(?:_[A-Z0-9_]+)?"))
