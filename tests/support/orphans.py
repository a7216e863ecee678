"""Rows whose parent is gone: there can be none, and this is how it is looked for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from tests.support.databases import Sql

# One row for each foreign key of the schema, however many come later. A key with a null in it refers to nothing.
_BUILD = """
    select string_agg(
        format(
            'select %L as link, count(*) as orphans from %s as child'
            ' where %s and not exists (select from %s as parent where %s)',
            conrelid::regclass || '.' || conname,
            conrelid::regclass,
            (
                select string_agg(format('child.%I is not null', attname), ' and ')
                from pg_attribute where attrelid = conrelid and attnum = any(conkey)
            ),
            confrelid::regclass,
            (
                select string_agg(format('parent.%I = child.%I', theirs.attname, ours.attname), ' and ')
                from unnest(conkey, confkey) as pair (ours, theirs)
                join pg_attribute as ours on ours.attrelid = conrelid and ours.attnum = pair.ours
                join pg_attribute as theirs on theirs.attrelid = confrelid and theirs.attnum = pair.theirs
            )
        ),
        ' union all ' order by conrelid, conname
    )
    from pg_constraint
    where contype = 'f' and connamespace = 'public'::regnamespace and conparentid = 0
"""


class OrphanCheck:
    """Counts the rows of one database that have lost their parent. In a few milliseconds, for use after every test."""

    def __init__(self, url: str, connection: Sql, query: str) -> None:
        self.url = url
        self.query = query
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator["OrphanCheck"]:
        """Connect, and write the query from the database's catalogue."""
        connection = await asyncpg.connect(url)
        try:
            query = await connection.fetchval(_BUILD)
            assert query, "the schema has no foreign keys: this is not Gatekey's database"
            yield cls(url, connection, query)
        finally:
            await connection.close()

    async def find(self) -> dict[str, int]:
        """How many rows have lost their parent, by `table.constraint`; empty where all is well."""
        return {row["link"]: row["orphans"] for row in await self._connection.fetch(self.query) if row["orphans"]}

    async def assert_none(self) -> None:
        """Fail unless every row has its parent."""
        assert await self.find() == {}, "these rows have lost their parent"
