"""The way to the server: where it is, and how to be let in."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gatekey.cli import local
from gatekey.cli.problems import Failure, complain

if TYPE_CHECKING:
    from gatekey.cli.calls import Connection

DEFAULT_ADDRESS = "127.0.0.1:50051"
CALL_S = 10.0
"""How long one call may take."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server, and the service token to present to it."""

    address: str
    token: str = field(repr=False)
    token_source: str
    """Where the token was found, for people."""
    actor: str = ""
    """The resource name of the principal on whose behalf mutations are made; empty for none."""
    ca: bytes | None = None
    """The authorities that vouch for the server, as PEM; None: the connection is not encrypted."""
    certificate: bytes | None = None
    """The client's certificate, as PEM; None for none."""
    key: bytes | None = field(default=None, repr=False)
    """The key of the client's certificate."""


def find_endpoint(environment: Mapping[str, str] = os.environ) -> Endpoint:
    """Find the server and how to speak to it: in plain text, or by TLS where GATEKEY_CA names authorities.

    Raises `Failure`.
    """
    endpoint = _find_address(environment)
    certificate, key = (_read_file(environment, f"GATEKEY_CLIENT_{part}") for part in ("CERTIFICATE", "KEY"))
    ca = _read_file(environment, "GATEKEY_CA")
    if (certificate is None) != (key is None) or (certificate is not None and ca is None):
        raise Failure(
            "GATEKEY_CLIENT_CERTIFICATE and GATEKEY_CLIENT_KEY need each other, and GATEKEY_CA", reason="TLS_INCOMPLETE"
        )
    actor = environment.get("GATEKEY_ACTOR", "")
    return replace(endpoint, actor=actor, ca=ca, certificate=certificate, key=key)


def _read_file(environment: Mapping[str, str], name: str) -> bytes | None:
    path = environment.get(name)
    try:
        return Path(path).read_bytes() if path else None
    except OSError as error:
        raise Failure(f"{name}: {error}", reason="TLS_INCOMPLETE") from error


def _find_address(environment: Mapping[str, str]) -> Endpoint:
    """Find the server by the environment, or else by the file that `gatekey serve` wrote.

    A token goes only to the address that came with it: one from the environment never to an address
    from the file, and the file's never to an address from the environment. Raises `Failure`.
    """
    address, token = environment.get("GATEKEY_ADDRESS"), environment.get("GATEKEY_TOKEN")
    if token:
        return _checked(Endpoint(address or DEFAULT_ADDRESS, token.strip(), "GATEKEY_TOKEN"))
    if address:
        raise Failure(
            "GATEKEY_TOKEN is missing: GATEKEY_ADDRESS is set, and needs a service token of its own",
            reason="TOKEN_MISSING",
        )
    path = Path(environment.get("GATEKEY_CONFIG") or local.DEFAULT_PATH)
    try:
        config = local.read(path)
    except local.LocalConfigError as error:
        raise Failure(str(error), reason="CONFIG_INVALID") from error
    if config is None:
        raise Failure(
            f"there is no service token: GATEKEY_TOKEN is not set, and {path} is not there",
            "`gatekey serve` writes that file, below the directory where it was started",
            reason="TOKEN_MISSING",
        )
    return _checked(Endpoint(config.address, config.token, str(path)))


def _checked(endpoint: Endpoint) -> Endpoint:
    host, _, port = endpoint.address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or len(port) > 5 or "/" in host:
        raise Failure(f"the address {endpoint.address} is not HOST:PORT", reason="ADDRESS_INVALID")
    # The transport would print a token that it cannot send.
    if not endpoint.token.isascii() or not endpoint.token.isprintable() or " " in endpoint.token:
        raise Failure(f"what {endpoint.token_source} holds is not a service token", reason="TOKEN_INVALID")
    return endpoint


def _is_this_machine(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    return ip.is_loopback or ip.is_unspecified


def connect() -> Connection:
    """Connect to the server that `find_endpoint` finds. Warns where others could read along."""
    from gatekey.cli.calls import Connection  # noqa: PLC0415 - slow, and not needed to be of help

    endpoint = find_endpoint()
    if endpoint.ca is None and not _is_this_machine(endpoint.address):
        complain(
            "warning",
            f"{endpoint.address} is not this machine, and the connection is not encrypted:"
            " whoever sees it can take the token and the keys",
        )
    return Connection(endpoint)
