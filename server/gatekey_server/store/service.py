"""What the service keeps about itself: its peppers' fingerprints, and the lock of its first start."""

from collections.abc import Sequence

from gatekey.core.secrets import Digest

from gatekey_server.store.database import Connection, Database
from gatekey_server.store.queries import queries


async def ping(database: Database) -> None:
    """Raise `Unavailable` unless the database answers."""
    async with database.connection() as connection:
        await queries.ping(connection)


async def lock_bootstrap(connection: Connection) -> None:
    """Keep other servers from setting up until the end of the transaction."""
    await queries.bootstrap_lock(connection)


async def pepper_fingerprints(connection: Connection) -> dict[int, bytes]:
    """The fingerprint of each pepper that was ever in use here, by version."""
    return {row["version"]: row["fingerprint"] async for row in queries.pepper_list(connection)}


async def add_pepper(connection: Connection, version: int, fingerprint: bytes) -> None:
    """Make a new pepper known."""
    await queries.pepper_insert(connection, version=version, fingerprint=fingerprint)


async def secret_exists(connection: Connection, digests: Sequence[Digest]) -> bool:
    """Whether a secret with one of these digests is stored."""
    return bool(await queries.secret_exists(connection, digests=digests))
