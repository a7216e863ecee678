"""For SQL that is run by hand, behind the server's back: it returns before anybody has heard of it."""

import asyncio

import asyncpg


async def applied_everywhere(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Wait until every process has applied all changes."""
    async with asyncio.timeout(30):
        while await connection.fetchval(
            "select exists (select from process, revision where applied_revision < current)"
        ):
            await asyncio.sleep(0.005)
