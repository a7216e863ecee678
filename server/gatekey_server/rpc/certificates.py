"""The files of TLS: the server's certificate, its key, and the roots of client certificates.

They are read at the start and whenever they change, and validated before use: the transport itself reports no
reason when they do not work.
"""

import ipaddress
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from gatekey._files import MAX_BYTES

from gatekey_server.files import open_regular

MIN_RSA_BITS = 2048

# gRPC's clients refuse what is signed with a key on any other curve.
_CURVES = (ec.SECP256R1, ec.SECP384R1)

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Stamp = tuple[object, ...]
T = TypeVar("T")


class MaterialError(Exception):
    """The files cannot be used. `problems` has a line for each problem, which names the variable and the file."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Files:
    """The paths of the files."""

    certificate: Path | None
    """The server's certificate, followed by its intermediates."""
    key: Path | None
    client_ca: Path | None
    """The roots that client certificates must be signed by; None where clients need not present one."""

    def stamp(self) -> Stamp:
        """Return a value that changes when one of the files does."""
        return tuple(_stamp(path) for path in (self.certificate, self.key, self.client_ca))


@dataclass(frozen=True, slots=True)
class Material:
    """The contents of the files, validated."""

    certificates: bytes
    """In PEM form, as all of it."""
    key: bytes = field(repr=False)
    client_ca: bytes | None
    expire_time: datetime
    """When the server's certificate expires."""


def problems(files: Files) -> list[str]:
    """Return the problems of the files that are named, a line each. No line holds any part of a key."""
    return _validate(files)[1]


def read(files: Files) -> Material:
    """Read the files; a certificate and a key must be named. Raises `MaterialError`."""
    material, found = _validate(files)
    if material is None:
        raise MaterialError(found)
    return material


def is_good_for(certificate: bytes, host: str) -> bool:
    """Whether the first of the certificates (PEM) is valid for a host: a DNS name or an IP address."""
    try:
        extensions = x509.load_pem_x509_certificate(certificate).extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    try:
        return ipaddress.ip_address(host.strip("[]")) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        wildcard = f"*.{host.partition('.')[2]}"
        return any(name in (host, wildcard) for name in names.get_values_for_type(x509.DNSName))


def _validate(files: Files) -> tuple[Material | None, list[str]]:
    found: list[str] = []

    def attempt(variable: str, path: Path | None, reader: Callable[[Path], T]) -> T | None:
        if path is None:
            return None
        try:
            return reader(path)
        except OSError as error:
            found.append(f"{variable}: {path}: {error.strerror}")
        except ValueError as error:
            found.append(f"{variable}: {path} {error}")
        return None

    chain = attempt("GATEKEY_TLS_CERTIFICATE", files.certificate, _read_chain)
    key = attempt("GATEKEY_TLS_KEY", files.key, _read_key)
    client_ca = attempt("GATEKEY_TLS_CLIENT_CA", files.client_ca, _read_certificates)
    if chain and key and chain[0].public_key() != key[0].public_key():
        found.append(f"GATEKEY_TLS_KEY: {files.key} is not the key of the certificate in GATEKEY_TLS_CERTIFICATE")
    if found or not chain or not key:
        return None, found
    return Material(_pem(chain), key[1], _pem(client_ca) if client_ca else None, chain[0].not_valid_after_utc), []


def _read_chain(path: Path) -> list[x509.Certificate]:
    chain = _read_certificates(path)
    first, now = chain[0], datetime.now(UTC)
    if now < first.not_valid_before_utc:
        raise ValueError(f"is not valid before {first.not_valid_before_utc.isoformat()}")
    if now > first.not_valid_after_utc:
        raise ValueError(f"has expired at {first.not_valid_after_utc.isoformat()}")
    return chain


def _read_certificates(path: Path) -> list[x509.Certificate]:
    with open_regular(path) as file:
        data = _read(file)
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ValueError("holds no certificate in PEM form, or one that cannot be read") from error


def _read_key(path: Path) -> tuple[PrivateKey, bytes]:
    with open_regular(path) as file:
        _check_private(file)
        data = _read(file)
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as error:
        raise ValueError("is encrypted, and there is nobody to ask for its password") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        # Without the error's text: no part of a key may reach a log.
        raise ValueError("holds no private key in PEM form, or one that cannot be read") from error
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= MIN_RSA_BITS:
        return key, data
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, _CURVES):
        return key, data
    raise ValueError(f"is neither an RSA key of {MIN_RSA_BITS} bits or more, nor an EC key on P-256 or P-384")


def _read(file: BinaryIO) -> bytes:
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"has more than {MAX_BYTES} bytes")
    if not data.strip():
        raise ValueError("is empty")
    return data


def _check_private(file: BinaryIO) -> None:
    """Raise for a key file that others may read.

    The rule is PostgreSQL's: a group may read a file that belongs to root, because keys are mounted so into
    containers that do not run as root.
    """
    status = os.fstat(file.fileno())
    others = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP
    if status.st_uid != 0 or os.geteuid() == 0:
        others |= stat.S_IRGRP
    if status.st_mode & others:
        raise ValueError(
            f"has the mode {stat.S_IMODE(status.st_mode):04o}, and a private key is for its owner alone: chmod 600"
        )


def _pem(certificates: list[x509.Certificate]) -> bytes:
    # Serialized again, so that the transport gets exactly what was validated.
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def _stamp(path: Path | None) -> Stamp | None:
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    # `ctime` also changes with the mode of the file.
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
