"""Certificates for tests, made on the spot."""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

LOCALHOST = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in PEM form."""

    certificate: bytes
    key: bytes

    def write(self, directory: Path, name: str = "server") -> tuple[Path, Path]:
        """Write both, as a careful operator would: each file is replaced whole, and the key is private."""
        paths = directory / f"{name}.pem", directory / f"{name}.key"
        for path, data in zip(paths, (self.certificate, self.key), strict=True):
            replace(path, data, mode=0o600)
        return paths


class Authority:
    """Signs certificates."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        builder = _builder(self.name, self.name, self.key, timedelta(hours=-1), timedelta(hours=1))
        self.certificate = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(
            self.key, hashes.SHA256()
        )

    @property
    def pem(self) -> bytes:
        """The authority's own certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        *names: x509.GeneralName,
        common_name: str = "somebody",
        key: Key | None = None,
        begins: timedelta = timedelta(hours=-1),
        ends: timedelta = timedelta(hours=1),
    ) -> Pair:
        """Sign a certificate with these alternative names."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
        builder = _builder(subject, self.name, key, begins, ends)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        signed = builder.sign(self.key, hashes.SHA256())
        return Pair(
            signed.public_bytes(Encoding.PEM), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )

    def trusted(self, client: Pair | None = None) -> grpc.ChannelCredentials:
        """The credentials of a client who trusts this authority, and presents a certificate of its own."""
        return grpc.ssl_channel_credentials(
            self.pem, client.key if client else None, client.certificate if client else None
        )

    @classmethod
    def make(cls, *names: str) -> tuple[Self, ...]:
        """Several at once."""
        return tuple(cls(name) for name in names)


def replace(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file so that nobody sees half of it."""
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.chmod(mode)
    new.replace(path)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Key, begins: timedelta, ends: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
    )
