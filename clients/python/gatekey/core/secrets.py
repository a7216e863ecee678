"""Secrets, the strings that holders of keys present: how they are generated, recognised and hashed.

A secret is `<prefix><32 random base-62 characters><6 base-62 characters of a CRC-32>`. The tail has a fixed length, so
the prefix is split off from the right. 32 characters hold 190 random bits, which no search exhausts. That is why a
fast keyed hash is enough to store them.
"""

import hashlib
import secrets
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NewType

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
RANDOM_CHARS = 32
CHECKSUM_CHARS = 6
TAIL_CHARS = RANDOM_CHARS + CHECKSUM_CHARS
MAX_PREFIX_CHARS = 32
MIN_PEPPER_BYTES = 32
_HINT_CHARS = 4
_BLOCK_BYTES = hashlib.sha256().block_size

# Two digits at a time, because every check computes two checksums.
_PAIRS = tuple(first + second for first in ALPHABET for second in ALPHABET)

Digest = NewType("Digest", bytes)
"""HMAC-SHA-256 of a whole secret under a pepper; 32 bytes."""

Secret = tuple[Digest, ...]
"""A presented secret, hashed under every pepper, the newest first; empty where it cannot be one."""


@dataclass(frozen=True, slots=True)
class SealedSecret:
    """The parts of a secret that may be stored."""

    digest: Digest
    pepper_version: int
    hint: str
    """The prefix and the first four characters after it. Not secret."""


def new_secret(prefix: str) -> str:
    """Return a new secret, from the system's source of randomness."""
    body = prefix + "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_CHARS))
    return body + checksum(body)


def is_well_formed(text: str) -> bool:
    """Whether the text can be a secret, by its length and its checksum."""
    if not TAIL_CHARS < len(text) <= TAIL_CHARS + MAX_PREFIX_CHARS or not text.isascii():
        return False
    return checksum(text[:-CHECKSUM_CHARS]) == text[-CHECKSUM_CHARS:]


def checksum(body: str) -> str:
    """Return the CRC-32 of an ASCII text in base 62, with leading zeros. It detects typing errors, no more."""
    rest, low = divmod(zlib.crc32(body.encode("ascii")), len(_PAIRS))
    high, middle = divmod(rest, len(_PAIRS))
    return _PAIRS[high] + _PAIRS[middle] + _PAIRS[low]


class Keyring:
    """The peppers, by version. New secrets are hashed under the newest, presented ones under all.

    Args:
        peppers: the keys of the hash, at least 32 bytes each, by a version of at least 1.
    """

    __slots__ = ("_keyed", "current_version")

    def __init__(self, peppers: Mapping[int, bytes]) -> None:
        if not peppers:
            raise ValueError("there is no pepper")
        if any(version < 1 or len(pepper) < MIN_PEPPER_BYTES for version, pepper in peppers.items()):
            raise ValueError(f"a pepper has a version below 1 or fewer than {MIN_PEPPER_BYTES} bytes")
        self._keyed = {version: _key(pepper) for version, pepper in sorted(peppers.items(), reverse=True)}
        self.current_version = max(peppers)

    def __repr__(self) -> str:
        return f"Keyring(versions={sorted(self._keyed)})"

    @property
    def versions(self) -> tuple[int, ...]:
        """The versions, the newest first."""
        return tuple(self._keyed)

    def seal(self, secret: str) -> SealedSecret:
        """Return a secret hashed under the newest pepper, for storage."""
        hint = secret[: len(secret) - TAIL_CHARS + _HINT_CHARS]
        return SealedSecret(self._digest(self.current_version, secret.encode()), self.current_version, hint)

    def digests(self, secret: str) -> tuple[Digest, ...]:
        """Return the digests of a presented secret under every pepper; none where it cannot be a secret."""
        if not is_well_formed(secret):
            return ()
        data = secret.encode()
        return tuple(self._digest(version, data) for version in self._keyed)

    def fingerprint(self, version: int) -> bytes:
        """Return a value by which holders of this version can compare their peppers."""
        return self._digest(version, b"gatekey pepper fingerprint")[:16]

    def _digest(self, version: int, data: bytes) -> Digest:
        inner, outer = self._keyed[version]
        inner, outer = inner.copy(), outer.copy()
        inner.update(data)
        outer.update(inner.digest())
        return Digest(outer.digest())


def _key(pepper: bytes) -> tuple["hashlib._Hash", "hashlib._Hash"]:
    """Return the two states of HMAC-SHA-256 (RFC 2104) after the key.

    Copying them is several times cheaper than keying new ones for each secret, and than `hmac`'s own copies.
    """
    key = (pepper if len(pepper) <= _BLOCK_BYTES else hashlib.sha256(pepper).digest()).ljust(_BLOCK_BYTES, b"\0")
    return hashlib.sha256(bytes(byte ^ 0x36 for byte in key)), hashlib.sha256(bytes(byte ^ 0x5C for byte in key))


class Mint:
    """Generates the secret of one key without showing the plaintext to the command that stores it.

    A service passes a mint to a command. The command gets what may be stored, and only the service reads `secret`, to
    return it once. A command that is retried mints again, and the last secret counts.
    """

    __slots__ = ("_keyring", "_secret")

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._secret: str | None = None

    def __repr__(self) -> str:
        return "Mint()"

    def __call__(self, prefix: str) -> SealedSecret:
        self._secret = new_secret(prefix)
        return self._keyring.seal(self._secret)

    @property
    def secret(self) -> str:
        """The plaintext. Raises `ValueError` before anything was minted."""
        if self._secret is None:
            raise ValueError("nothing was minted")
        return self._secret
