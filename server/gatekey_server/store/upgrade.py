"""Alembic, which runs the migrations over a connection that is given to it."""

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
    """Bring the schema up to a version. One that is newer than `newest` is left as it is.

    Raises the driver's errors.
    """
    engine = create_async_engine("postgresql+asyncpg://", async_creator=_giver(connection), poolclass=StaticPool)
    try:
        async with engine.connect() as wrapped:
            await wrapped.run_sync(_upgrade, version, newest)
    except SQLAlchemyError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # It complains of the transaction that was broken off.
            raise asyncio.CancelledError from error
        # It wraps the driver's error twice.
        raise (isinstance(error, DBAPIError) and error.orig and error.orig.__cause__) or error from None
    finally:
        # Its end would end the connection, too.
        await engine.dispose(close=False)


def _giver(connection: asyncpg.Connection) -> Callable[[], Awaitable[asyncpg.Connection]]:
    async def give() -> asyncpg.Connection:
        return connection

    return give


def _upgrade(connection: SyncConnection, version: str, newest: str) -> None:
    context = MigrationContext.configure(connection, opts={"version_table": "schema_version"})
    # A newer schema serves this release as well, which may have been put back.
    is_newer = (context.get_current_revision() or "") > newest
    connection.rollback()
    if is_newer:
        return
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, version)
    connection.commit()
