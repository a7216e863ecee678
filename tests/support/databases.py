"""Fresh databases, copied from a template in milliseconds."""

import itertools
from typing import TypeAlias

import asyncpg
from gatekey_server.store import schema
from gatekey_server.store.embedded import EmbeddedPostgres

TEMPLATE = "gatekey_template"

Sql: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
"""A connection to run SQL by hand."""


class Databases:
    """Makes databases in one cluster. What a test left behind goes with the cluster."""

    def __init__(self, cluster: EmbeddedPostgres) -> None:
        self._cluster = cluster
        self._numbers = itertools.count(1)

    async def prepare(self) -> None:
        """Make the template: a database with the schema and nothing in it."""
        await self._execute(f"create database {TEMPLATE}")
        await schema.migrate(self.url(TEMPLATE))

    async def create(self, template: str = TEMPLATE) -> str:
        """Make a database; answers its URL."""
        name = f"test_{next(self._numbers)}"
        await self._execute(f"create database {name} template {template}")
        if template == TEMPLATE:
            # Not a copy that begins a history of its own, whose mutations would wait.
            await self._execute("update revision set home = current_database() || '/' || tableoid", name)
        return self.url(name)

    def url(self, name: str) -> str:
        """The URL of a database of the cluster."""
        return self._cluster.dsn(name)

    async def _execute(self, statement: str, database: str = "postgres") -> None:
        connection = await asyncpg.connect(self._cluster.dsn(database))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()
