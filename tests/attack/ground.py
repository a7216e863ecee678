"""What attackers are told, and how what they need is made."""

import itertools
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
from gatekey.core.names import parse_key_id
from gatekey.core.secrets import Keyring, new_secret
from gatekey_server.runtime.config import parse_peppers

from tests.attack.h2_attacker import Target
from tests.support.server import PEPPERS, Client

ATTACKED = "attacked"
"""The product that attackers have tokens for. The victim's is another."""

_KEYRING = Keyring(parse_peppers(PEPPERS))


@dataclass(frozen=True)
class Scene:
    """Where to attack, and with what."""

    address: str
    ca: str | None
    checker: str
    """A token that may check keys of `ATTACKED`, and nothing else."""
    administrator: str
    """A token that may do everything in `ATTACKED`."""
    snapshots: dict[str, Any] = field(default_factory=dict)
    """What was prepared for the attack."""

    def target(self, token: str | None) -> Target:
        """The server, with a token or without one."""
        return Target.at(self.address, Path(self.ca) if self.ca else None, token)


@dataclass(frozen=True)
class Ground:
    """Makes what attacks need, by calls and by SQL."""

    root: Client
    sql: "asyncpg.Connection[asyncpg.Record]"
    scale: float
    """Of how many rows there are to be, where an attack is about many."""
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    async def tenant(self, role: str = "owner") -> tuple[str, str]:
        """A new tenant of `ATTACKED`, and a member of it; answers both names."""
        tenant = await self.root.create_tenant(ATTACKED, f"t{next(self._numbers)}")
        return tenant, await self.root.add_member(tenant, "member", role)

    async def copies(self, key: str, count: int) -> list[str]:
        """Make copies of a key by SQL; answers their secrets."""
        prefix = "hey_" if "/heyoo/" in key else f"{ATTACKED}_"
        uid, secrets = parse_key_id(key.rpartition("/")[2]), [new_secret(prefix) for _ in range(count)]
        uids, digests = [uuid.uuid4() for _ in secrets], [_KEYRING.seal(secret).digest for secret in secrets]
        async with self.sql.transaction():
            await self.sql.execute(
                "insert into api_key (tenant_uid, key_uid, principal_uid, display_name, kind, mode, grants)"
                " select tenant_uid, uid, principal_uid, 'copy', kind, mode, grants"
                " from api_key, unnest($2::uuid[]) uid where key_uid = $1",
                *(uid, uids),
                timeout=60,
            )
            await self.sql.execute(
                "insert into secret (tenant_uid, key_uid, slot, digest, pepper_version, hint)"
                " select tenant_uid, uid, 1, digest, 1, '' from api_key, unnest($2::uuid[], $3::bytea[]) c(uid, digest)"
                " where key_uid = $1",
                *(uid, uids, digests),
                timeout=60,
            )
        return secrets

    async def nothing(self) -> dict[str, Any]:
        """Prepare nothing."""
        return {}
