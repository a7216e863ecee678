"""Names for scopes by which clients can follow changes, and which tell them nothing.

Whoever resolves a secret is told what its scopes are called. That something changed in a scope by any other name says
no more than that something changed somewhere.
"""

import hashlib
import uuid
from datetime import datetime
from functools import lru_cache

from gatekey.core.secrets import Digest

NAME_BYTES = 16
_NUMBER_BYTES = 8


class ScopePseudonyms:
    """Names scopes with a key: the same for all servers of a deployment, and unknown to everybody else."""

    __slots__ = ("_key",)

    def __init__(self, key: uuid.UUID) -> None:
        self._key = key.bytes

    def tenant(self, tenant_uid: int) -> int:
        """The name of a tenant."""
        return self._number(b"tenant", tenant_uid)

    def principal(self, principal_uid: int) -> int:
        """The name of a principal."""
        return self._number(b"principal", principal_uid)

    def key(self, key_uid: uuid.UUID) -> bytes:
        """The name of a key."""
        return _name(self._key, b"key", key_uid.bytes, NAME_BYTES)

    def secret(self, digest: Digest) -> bytes:
        """The name of a secret, whether there is one or not."""
        return _name(self._key, b"secret", digest, NAME_BYTES)

    def server(self, started: datetime) -> bytes:
        """The name of a server of the database, by when it was started."""
        return _name(self._key, b"server", started.isoformat().encode(), _NUMBER_BYTES)

    def _number(self, kind: bytes, uid: int) -> int:
        return int.from_bytes(_name(self._key, kind, uid.to_bytes(8, signed=True), _NUMBER_BYTES))


# Many clients are told the same.
@lru_cache(maxsize=65_536)
def _name(key: bytes, kind: bytes, value: bytes, length: int) -> bytes:
    return hashlib.blake2b(value, key=key, person=kind, digest_size=length).digest()
