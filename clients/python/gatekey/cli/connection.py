"""The way to the server: where it is, and how to be let in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from gatekey import _pem
from gatekey._connection import DEFAULT_ADDRESS, TlsMaterial, target_of
from gatekey._secret_text import clean
from gatekey.cli import local
from gatekey.cli.problems import Failure
from gatekey.cli.streams import stripped

_TLS = ("GATEKEY_CA", "GATEKEY_CLIENT_CERTIFICATE", "GATEKEY_CLIENT_KEY")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server, and the service token to present to it."""

    address: str
    """HOST:PORT, or several with commas between them."""
    token: str = field(repr=False)
    token_source: str
    """Where the token was found, for people."""
    actor: str = ""
    """The resource name of the principal on whose behalf mutations are made; empty for none."""
    tls: TlsMaterial | None = field(default=None, repr=False)
    """What TLS needs; None: the connection is not encrypted."""

    @property
    def addresses(self) -> list[str]:
        """Where the server, or the servers of one database, are."""
        return [part.strip() for part in self.address.split(",")]


def find_endpoint(environment: Mapping[str, str] = os.environ) -> Endpoint:
    """Find the server and how to speak to it: in plain text, or by TLS where GATEKEY_CA names authorities.

    Raises `Failure`.
    """
    endpoint = _find_address(environment)
    ca_file, certificate_file, key_file = (environment.get(name, "") for name in _TLS)
    if bool(certificate_file) != bool(key_file) or (certificate_file and not ca_file):
        raise Failure(
            "GATEKEY_CLIENT_CERTIFICATE and GATEKEY_CLIENT_KEY need each other, and GATEKEY_CA", reason="TLS_INCOMPLETE"
        )
    tls = None
    try:
        if ca_file:
            tls = TlsMaterial(_pem.read_authorities(Path(ca_file), _TLS[0]))
        if tls is not None and certificate_file:
            tls = TlsMaterial(tls.ca, *_pem.read_pair(Path(certificate_file), Path(key_file), _TLS[1:]))
    except ValueError as error:
        raise Failure(str(error), reason="TLS_INVALID") from error
    if tls is not None and len(endpoint.addresses) > 1:
        raise Failure(
            f"GATEKEY_CA: with TLS, give one name instead of {endpoint.address}, the one in all of their certificates",
            reason="ADDRESS_INVALID",
        )
    actor = stripped(environment.get("GATEKEY_ACTOR", ""))
    if not actor.isascii() or not actor.isprintable():
        raise Failure(f"GATEKEY_ACTOR: {actor} is not the name of a member or machine user", reason="NAME_INVALID")
    return replace(endpoint, actor=actor, tls=tls)


def _find_address(environment: Mapping[str, str]) -> Endpoint:
    """Find the server by the environment, or else by the file that `gatekey serve` wrote.

    A token goes only to the address that came with it: one from the environment never to an address
    from the file, and the file's never to an address from the environment. Raises `Failure`.
    """
    address, token = (stripped(environment.get(f"GATEKEY_{name}", "")) for name in ("ADDRESS", "TOKEN"))
    if token:
        return _checked(Endpoint(address or DEFAULT_ADDRESS, token, "GATEKEY_TOKEN"))
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
    return _checked(Endpoint(stripped(config.address), stripped(config.token), str(path)))


def _checked(endpoint: Endpoint) -> Endpoint:
    try:
        target_of(endpoint.addresses)
    except ValueError as error:
        raise Failure(str(error), reason="ADDRESS_INVALID") from None
    try:
        return replace(endpoint, token=clean(endpoint.token, endpoint.token_source))
    except ValueError as error:
        raise Failure(str(error), reason="TOKEN_INVALID") from None
