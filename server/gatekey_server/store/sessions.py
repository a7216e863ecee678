"""Checking that a database is fit for Gatekey, and that each connection has a session of its own."""

from contextlib import AsyncExitStack

import asyncpg

from gatekey_server.store.database import ConnectError, Primary, translated_errors

# Enough to detect a pooler, whether it reuses the last connection or takes the next in turn.
_TURNS = (0, 1, 0, 0, 1, 1, 0, 1)

_SHARED = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)


MIN_VERSION = 15


class UnfitError(Exception):
    """The database cannot be used as it is. The text is for the operator."""


class PoolerError(UnfitError):
    """The URL leads to a pooler that shares sessions. The text is for the operator."""

    def __init__(self) -> None:
        super().__init__(
            "the database's URL leads to a pooler that shares sessions between connections, as PgBouncer does with"
            " pool_mode=transaction or statement: Gatekey needs sessions of its own. Set pool_mode=session for this"
            " database, or let the URL lead to PostgreSQL itself"
        )


async def check(primary: Primary, timeout_s: float) -> None:
    """Raise `UnfitError` for a server that is too old or has no Unicode, and `PoolerError` for shared sessions.

    Sessions are shared where two connections have the same session, or one connection has several.
    Raises `Unavailable` where the database cannot be reached.
    """
    with translated_errors():
        async with AsyncExitStack() as stack:
            try:
                connections = []
                for _ in range(2):
                    connection = await primary.connect(
                        timeout=timeout_s, command_timeout=timeout_s, server_settings={"application_name": "gatekey"}
                    )
                    stack.callback(connection.terminate)
                    connections.append(connection)
                _check_server(connections[0])
                pids: list[set[int]] = [set(), set()]
                for turn in _TURNS:
                    pids[turn].add(await connections[turn].fetchval("select pg_backend_pid()"))
            except _SHARED as error:
                raise PoolerError from error
            except ConnectError as error:
                if isinstance(error.__cause__, _SHARED):
                    raise PoolerError from error
                raise
    if len(pids[0] | pids[1]) != len(pids) or pids[0] & pids[1]:
        raise PoolerError


def _check_server(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    version = connection.get_server_version()
    if version.major < MIN_VERSION:
        raise UnfitError(f"the database is a PostgreSQL {version.major}: Gatekey needs {MIN_VERSION} or newer")
    encoding = getattr(connection.get_settings(), "server_encoding", "UTF8")
    if encoding != "UTF8":
        raise UnfitError(
            f"the database's encoding is {encoding}: make another one, with `create database … encoding 'UTF8' template"
            " template0`"
        )
