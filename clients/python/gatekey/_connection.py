"""The way to the server: where it is, how it is secured, which token is presented, and how calls are tried again."""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from gatekey import _pem

DEFAULT_ADDRESS = "127.0.0.1:50051"
CHECK_S = 2.0
"""How long a check may take unless said otherwise, all attempts included."""
ADMIN_S = 10.0
"""How long any other call may take unless said otherwise."""
PAGE_SIZE = 200

# A page may hold that many of the largest things that the server accepts.
_MAX_RESPONSE_BYTES = PAGE_SIZE << 20

_SERVICES = ("Check", "Cache", "Product", "Tenant", "Member", "MachineUser", "ApiKey", "Audit")

# Every call can be repeated: checks and reads as they are, mutations by their `request_id`. A server that stops cancels
# what it has not done; what is cancelled on this side is not repeated.
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": f"gatekey.v1.{name}Service"} for name in _SERVICES],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ],
    # A server that fails is not asked five times as often: below half of the tokens nothing is repeated. Half of them
    # are enough for what is under way when one of several servers stops.
    "retryThrottling": {"maxTokens": 1000, "tokenRatio": 0.1},
}

OPTIONS: Sequence[tuple[str, int | str]] = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # Not one that the name's owner publishes.
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.max_receive_message_length", _MAX_RESPONSE_BYTES),
    # A proxy for the web is not meant to see tokens in plain text.
    ("grpc.enable_http_proxy", 0),
    # A connection that no longer leads anywhere is given up within 25 s.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A server that is back, or elsewhere, is found within a second or two.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # Each client has connections of its own; what happens to one client's does not concern another.
    ("grpc.use_local_subchannel_pool", 1),
)

_ARGUMENTS = ("TLS.ca", "TLS.certificate", "TLS.key")
_VARIABLES = ("GATEKEY_CA", "GATEKEY_CLIENT_CERTIFICATE", "GATEKEY_CLIENT_KEY")

_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:")


@dataclass(frozen=True, slots=True)
class TLS:
    """Speak TLS. All files are PEM files, and are read when the client is made."""

    ca: str | os.PathLike[str] | None = None
    """The authorities that vouch for the server; None for those that browsers trust."""
    certificate: str | os.PathLike[str] | None = None
    """This client's own certificate, for mutual TLS."""
    key: str | os.PathLike[str] | None = None
    """The key of the certificate."""
    server_name: str | None = None
    """The name to expect in the server's certificate, where it is not the one in the address."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the server is and how to speak to it."""

    target: str
    credentials: grpc.ChannelCredentials | None
    """None: the connection is not encrypted."""
    options: Sequence[tuple[str, int | str]]
    token_optional: bool
    """Whether a certificate can take the token's place."""


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What TLS needs, as PEM."""

    ca: bytes | None = None
    """The authorities that vouch for the server; None for those that browsers trust."""
    certificate: bytes | None = None
    """The client's own certificate; None for none."""
    key: bytes | None = field(default=None, repr=False)
    """The key of the certificate."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long calls may take, in seconds, unless said otherwise."""

    check: float
    admin: float


def find_endpoint(
    address: str | Sequence[str] | None,
    tls: TLS | None,
    *,
    insecure: bool,
    environment: Mapping[str, str] = os.environ,
) -> Endpoint:
    """The endpoint of the arguments, and of the environment where they say nothing.

    Raises `ValueError` for what cannot be used, files included.
    """
    if address is None:
        address = environment.get("GATEKEY_ADDRESS") or DEFAULT_ADDRESS
    addresses = [part.strip() for part in address.split(",")] if isinstance(address, str) else list(address)
    names = _ARGUMENTS
    if tls is None:
        tls, names = _tls_of(environment), _VARIABLES
    if tls is None:
        if not insecure and not all(is_this_machine(each) for each in addresses):
            raise ValueError(
                f"{', '.join(addresses)}: other machines are not called in plain text: give tls=TLS(...), or"
                " insecure=True where something in between encrypts, such as a mesh's sidecar"
            )
        return endpoint_at(addresses, None)
    if len(addresses) > 1 and tls.server_name is None:
        raise ValueError("TLS: several addresses need a server_name, the one that is in all of their certificates")
    if (tls.certificate is None) != (tls.key is None):
        raise ValueError("TLS: the certificate and the key need each other")
    ca = _pem.read_authorities(Path(tls.ca), names[0]) if tls.ca is not None else None
    certificate = key = None
    if tls.certificate is not None and tls.key is not None:
        certificate, key = _pem.read_pair(Path(tls.certificate), Path(tls.key), names[1:])
    return endpoint_at(addresses, TlsMaterial(ca, certificate, key), tls.server_name)


def endpoint_at(addresses: Sequence[str], material: TlsMaterial | None, server_name: str | None = None) -> Endpoint:
    """Return the endpoint at these addresses; without material the connection is not encrypted. Raises `ValueError`."""
    options = list(OPTIONS)
    if material is None:
        if len(addresses) > 1:
            # Else all of them together are told to the server as its name, which is none.
            options += [("grpc.default_authority", addresses[0])]
        return Endpoint(target_of(addresses), None, options, token_optional=False)
    if server_name is not None:
        options += [("grpc.ssl_target_name_override", server_name), ("grpc.default_authority", server_name)]
    credentials = grpc.ssl_channel_credentials(material.ca, material.key, material.certificate)
    return Endpoint(target_of(addresses), credentials, options, token_optional=material.certificate is not None)


def _tls_of(environment: Mapping[str, str]) -> TLS | None:
    ca, certificate, key = (environment.get(name) for name in _VARIABLES)
    if not ca and (certificate or key):
        raise ValueError("GATEKEY_CLIENT_CERTIFICATE and GATEKEY_CLIENT_KEY need GATEKEY_CA")
    return TLS(ca, certificate or None, key or None) if ca else None


def target_of(addresses: Sequence[str]) -> str:
    """Return what gRPC calls these addresses. Raises `ValueError` for what cannot be used."""
    if len(addresses) == 1 and addresses[0].startswith(_SCHEMES):
        return addresses[0]
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or len(port) > 5 or "/" in host:
            raise ValueError(f"the address {address!r} is not HOST:PORT")
    if len(addresses) == 1:
        return f"dns:///{addresses[0]}"
    versions = {_version(address) for address in addresses}
    if len(versions) != 1 or None in versions:
        raise ValueError(
            "several addresses have to be all IPv4 or all IPv6; for names, give one that stands for them all"
        )
    return f"ipv{versions.pop()}:{','.join(addresses)}"


def _version(address: str) -> int | None:
    try:
        return ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).version
    except ValueError:
        return None


def is_this_machine(address: str) -> bool:
    """Return whether the address leads to this machine, whatever machine that is."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.removeprefix("dns:///").rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
