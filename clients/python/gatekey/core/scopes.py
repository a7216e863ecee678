"""Pseudonyms of scopes, by which clients follow changes without learning of other scopes.

A client that resolves a secret gets the pseudonyms of its scopes. A change under any other pseudonym only tells it
that something changed somewhere.
"""

import hashlib
import uuid
from datetime import datetime
from functools import lru_cache

from gatekey.core.secrets import Digest

NAME_BYTES = 16
_NUMBER_BYTES = 8


class ScopePseudonyms:
    """Derives pseudonyms with a key that all servers of a deployment share and nobody else knows."""

    __slots__ = ("_key",)

    def __init__(self, key: uuid.UUID) -> None:
        self._key = key.bytes

    def tenant(self, tenant_uid: int) -> int:
        """Return the pseudonym of a tenant."""
        return self._number(b"tenant", tenant_uid)

    def principal(self, principal_uid: int) -> int:
        """Return the pseudonym of a principal."""
        return self._number(b"principal", principal_uid)

    def key(self, key_uid: uuid.UUID) -> bytes:
        """Return the pseudonym of a key."""
        return _name(self._key, b"key", key_uid.bytes, NAME_BYTES)

    def secret(self, digest: Digest) -> bytes:
        """Return the pseudonym of a secret, whether it exists or not."""
        return _name(self._key, b"secret", digest, NAME_BYTES)

    def server(self, started: datetime) -> bytes:
        """Return the pseudonym of a database server, from its start time."""
        return _name(self._key, b"server", started.isoformat().encode(), _NUMBER_BYTES)

    def _number(self, kind: bytes, uid: int) -> int:
        return int.from_bytes(_name(self._key, kind, uid.to_bytes(8, signed=True), _NUMBER_BYTES))


# Many clients get the same ones.
@lru_cache(maxsize=65_536)
def _name(key: bytes, kind: bytes, value: bytes, length: int) -> bytes:
    return hashlib.blake2b(value, key=key, person=kind, digest_size=length).digest()
