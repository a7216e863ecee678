"""The schema's migrations: which are needed, which are there, and how to run them.

Migrations only go forward, hold their locks briefly or give up, and leave a schema that the
previous release can go on using.
"""

import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection as SyncConnection
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from gatekey_server.store.database import Database, checked_url, translated_errors

_ADVISORY_LOCK = 7016996765293437282
_LOCK_TIMEOUT_S = 5
_LOCK_RETRY_S = 0.1
_STATEMENT_TIMEOUT_S = 300


def newest_version() -> str:
    """The version of the schema that this release needs."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise AssertionError("the package holds no migrations")
    return head


async def current_version(database: Database) -> str | None:
    """The version of the database's schema; None where it holds none."""
    try:
        rows = await database.fetch("select version_num from schema_version")
    except asyncpg.UndefinedTableError:
        return None
    return str(rows[0]["version_num"]) if rows else None


async def migrate(dsn: str, *, version: str = "head") -> None:
    """Bring the schema up to a version. Two at once queue; an interrupted one is taken up by the next.

    Raises `Unavailable` where the database cannot be reached or a lock was not to be had in time.
    """
    with translated_errors():
        # The driver reads the URL itself, so that every form of it means here what it means to the server.
        async with checked_url():
            connection = await asyncpg.connect(dsn, server_settings={"application_name": "gatekey-migrate"})
        engine = create_async_engine("postgresql+asyncpg://", async_creator=_giver(connection), poolclass=NullPool)
        try:
            async with engine.connect() as wrapped:
                await wrapped.run_sync(_upgrade, version)
        except DBAPIError as error:
            # SQLAlchemy wraps the driver's error twice.
            raise (error.orig and error.orig.__cause__) or error from None
        finally:
            await engine.dispose()
            await connection.close()


def _giver(connection: asyncpg.Connection) -> Callable[[], Awaitable[asyncpg.Connection]]:
    async def give() -> asyncpg.Connection:
        return connection

    return give


def _upgrade(connection: SyncConnection, version: str) -> None:
    # Asked again and again: whoever waits inside a statement keeps an index from being built concurrently.
    while not connection.execute(text(f"select pg_try_advisory_lock({_ADVISORY_LOCK})")).scalar_one():
        connection.commit()
        time.sleep(_LOCK_RETRY_S)
    # Whoever waits for a lock makes everyone behind it wait: give up early and be called again.
    connection.execute(text(f"set lock_timeout = '{_LOCK_TIMEOUT_S}s'"))
    connection.execute(text(f"set statement_timeout = '{_STATEMENT_TIMEOUT_S}s'"))
    connection.commit()
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, version)
    connection.commit()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config
