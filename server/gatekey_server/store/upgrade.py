"""Running the migrations with Alembic, over a given connection."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection as SyncConnection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool


async def run(connection: "asyncpg.Connection[asyncpg.Record]", version: str, *, newest: str) -> None:
    """Upgrade the schema to a version. A schema newer than `newest` is left unchanged.

    Raises the driver's errors.
    """
    engine = create_async_engine("postgresql+asyncpg://", async_creator=_giver(connection), poolclass=StaticPool)
    try:
        async with engine.connect() as wrapped:
            await wrapped.run_sync(_upgrade, version, newest)
    except SQLAlchemyError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # On cancellation SQLAlchemy raises an error about the aborted transaction instead.
            raise asyncio.CancelledError from error
        # SQLAlchemy wraps the driver's error twice.
        raise (isinstance(error, DBAPIError) and error.orig and error.orig.__cause__) or error from None
    finally:
        # Closing it would close the connection, too.
        await engine.dispose(close=False)


def _giver(connection: asyncpg.Connection) -> Callable[[], Awaitable[asyncpg.Connection]]:
    async def give() -> asyncpg.Connection:
        return connection

    return give


def _upgrade(connection: SyncConnection, version: str, newest: str) -> None:
    context = MigrationContext.configure(connection, opts={"version_table": "schema_version"})
    # This release also works with a newer schema, as after a rollback.
    is_newer = (context.get_current_revision() or "") > newest
    connection.rollback()
    if is_newer:
        return
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, version)
    connection.commit()
