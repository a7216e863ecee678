"""TLS: the server's credentials, which follow their files, and callers that are identified by certificates."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import grpc
import structlog
from cryptography import x509
from gatekey.core.errors import Unauthenticated
from gatekey.core.names import ApiKeyName

from gatekey_server.rpc import certificates
from gatekey_server.rpc.certificates import Files, Material, MaterialError

CertificateCallers = Mapping[x509.GeneralName, ApiKeyName]
"""Service tokens, by the subject alternative names of the certificates that stand for them."""

_LOOK_INTERVAL_S = 1.0
_CERTIFICATES_MAX = 1024
_MAX_NAMES_TOLD = 5

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ServerTls:
    """The credentials of a server, and the callers that it identifies by certificates."""

    credentials: grpc.ServerCredentials
    callers: CertificateCallers


def server_tls(files: Files, callers: CertificateCallers) -> ServerTls:
    """Return the credentials of a server, which follow the files from then on. Raises `MaterialError`."""
    watched = WatchedFiles(files)
    credentials = grpc.dynamic_ssl_server_credentials(
        _configuration(watched.material),
        _Fetcher(watched),  # type: ignore[arg-type] # which may answer None: no change
        require_client_authentication=files.client_ca is not None,
    )
    return ServerTls(credentials, callers)


class WatchedFiles:
    """The newest usable contents of the TLS files. Thread-safe."""

    def __init__(self, files: Files, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the files. Raises `MaterialError`."""
        self._files = files
        self._clock = clock
        self._lock = threading.Lock()
        self._stamp = files.stamp()
        self._looked_at = clock()
        self._problems: list[str] = []
        self.material = certificates.read(files)

    def refresh(self) -> bool:
        """Look for a change, at most once a second. Returns whether `material` has changed.

        Unusable files are logged once and retried: they may be replaced one after the other, or become valid by the
        clock alone.
        """
        with self._lock:
            now = self._clock()
            if now - self._looked_at < _LOOK_INTERVAL_S:
                return False
            self._looked_at = now
            stamp = self._files.stamp()
            return stamp != self._stamp and self._reload(stamp)

    def _reload(self, stamp: certificates.Stamp) -> bool:
        try:
            material = certificates.read(self._files)
        except MaterialError as error:
            if error.problems != self._problems:
                self._problems = error.problems
                _log.error("tls.reload_failed", problems=error.problems, still_used_until=_expiry(self.material))
            return False
        changed = material != self.material
        if changed or self._problems:
            _log.info("tls.reloaded", expires=_expiry(material))
        self._stamp, self._problems, self.material = stamp, [], material
        return changed


class _Fetcher:
    """Called by the transport before every handshake, in any of its threads."""

    def __init__(self, files: WatchedFiles) -> None:
        self._files = files

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        return _configuration(self._files.material) if self._files.refresh() else None


def _configuration(material: Material) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.certificates)], root_certificates=material.client_ca
    )


def _expiry(material: Material) -> str:
    return material.expire_time.isoformat()


def caller_of(auth_context: Mapping[str, Iterable[bytes]], callers: CertificateCallers) -> ApiKeyName:
    """Return the service token that the peer's certificate stands for.

    Args:
    auth_context: the transport's properties of the connection. The certificate must have been verified.

    Raises `Unauthenticated` (`CERTIFICATE_UNKNOWN`, `CERTIFICATE_AMBIGUOUS`).
    """
    # The names are read from the certificate itself. The transport's list mixes their kinds and cuts a
    # name off at a NUL, which would turn one name into another.
    names = frozenset[x509.GeneralName]().union(*(_names(pem) for pem in auth_context.get("x509_pem_cert", ())))
    tokens = {callers[name] for name in names if name in callers}
    if not tokens:
        raise Unauthenticated(
            "CERTIFICATE_UNKNOWN",
            f"there is no `authorization`, and no service token for the client certificate ({_tell(names)})",
        )
    if len(tokens) > 1:
        raise Unauthenticated(
            "CERTIFICATE_AMBIGUOUS", f"the client certificate ({_tell(names)}) stands for more than one service token"
        )
    return tokens.pop()


@lru_cache(maxsize=_CERTIFICATES_MAX)
def _names(pem: bytes) -> frozenset[x509.GeneralName]:
    """Return the alternative names of a certificate; none where it has none that can be read."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        return frozenset(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return frozenset()


def _tell(names: Iterable[x509.GeneralName]) -> str:
    told = sorted(repr(name.value) for name in names if isinstance(name, x509.DNSName | x509.UniformResourceIdentifier))
    if not told:
        return "which has no DNS name and no URI"
    return ", ".join(told[:_MAX_NAMES_TOLD]) + (", …" if len(told) > _MAX_NAMES_TOLD else "")
