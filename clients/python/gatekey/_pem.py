"""Files of TLS, looked at before the transport has them: it tells what is wrong with them only to its own log."""

import ssl
from pathlib import Path

from gatekey._files import read_bounded


def read_authorities(path: Path, name: str) -> bytes:
    """Read certificates. Raises `ValueError`, which begins with the name and tells the path."""
    data = _read(path, name, "CERTIFICATE")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=data.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError):
        raise ValueError(f"{name}: {path} holds a certificate that cannot be read") from None
    return data


def read_pair(certificate: Path, key: Path, names: tuple[str, str]) -> tuple[bytes, bytes]:
    """Read a certificate and its key. Raises as `read_authorities`."""
    data = read_authorities(certificate, names[0]), _read(key, names[1], "PRIVATE KEY")
    if b"ENCRYPTED" in data[1]:
        raise ValueError(f"{names[1]}: {key} is encrypted, and there is nobody to ask for its password")
    # It reads only files, and a pipe is empty by now.
    if certificate.is_file() and key.is_file():
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, lambda: "")
        except ssl.SSLError as error:
            mismatch = error.reason == "KEY_VALUES_MISMATCH"
            problem = f"is not the key of {certificate}" if mismatch else "holds a private key that cannot be read"
            raise ValueError(f"{names[1]}: {key} {problem}") from None
    return data


def _read(path: Path, name: str, kind: str) -> bytes:
    try:
        data = read_bounded(path)
    except OSError as error:
        raise ValueError(f"{name}: {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {path} {error}") from error
    if f"{kind}-----".encode() not in data:
        raise ValueError(f"{name}: {path} holds no {kind.lower()} in PEM")
    return data
