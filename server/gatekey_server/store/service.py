"""The service's own rows: the fingerprints of its peppers, and the lock of the first start."""

from collections.abc import Sequence

from gatekey.core.secrets import Digest

from gatekey_server.store.database import Connection, Database
from gatekey_server.store.queries import queries


async def ping(database: Database) -> None:
    """Raise `Unavailable` unless the database responds."""
    async with database.connection() as connection:
        await queries.ping(connection)


async def lock_bootstrap(connection: Connection) -> None:
    """Keep other servers from bootstrapping until the end of the transaction."""
    await queries.bootstrap_lock(connection)


async def pepper_fingerprints(connection: Connection) -> dict[int, bytes]:
    """Return the fingerprint of each pepper that was ever in use, by version."""
    return {row["version"]: row["fingerprint"] async for row in queries.pepper_list(connection)}


async def add_pepper(connection: Connection, version: int, fingerprint: bytes) -> None:
    """Store the fingerprint of a new pepper."""
    await queries.pepper_insert(connection, version=version, fingerprint=fingerprint)


async def secret_exists(connection: Connection, digests: Sequence[Digest]) -> bool:
    """Whether a secret with one of these digests is stored."""
    return bool(await queries.secret_exists(connection, digests=digests))
