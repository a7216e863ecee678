"""The meaning of the errors of PostgreSQL and its driver, in one table: by SQLSTATE, its class, or the type."""

import enum
from collections.abc import Mapping

import asyncpg
from asyncpg.exceptions import ClientConfigurationError


class Meaning(enum.Enum):
    """How to handle an error."""

    NOT_NOW = "the database cannot do it now: `UNAVAILABLE`, and the background tries again later"
    AGAIN = "others got in the way: the transaction is tried again at once"
    FAULT = "a fault of Gatekey or in a row: `INTERNAL`, logged whole"


_NOT_NOW, _AGAIN, _FAULT = Meaning.NOT_NOW, Meaning.AGAIN, Meaning.FAULT

BY_CLASS: Mapping[str, Meaning] = {
    "00": _FAULT,
    "01": _FAULT,
    "02": _FAULT,
    "03": _FAULT,
    # The connection. Poolers also send 08P01 for "no server".
    "08": _NOT_NOW,
    "09": _FAULT,
    "0A": _FAULT,
    "0B": _FAULT,
    "0F": _FAULT,
    "0L": _FAULT,
    "0P": _FAULT,
    "0Z": _FAULT,
    "10": _FAULT,
    "20": _FAULT,
    "21": _FAULT,
    # Requests are validated before: an invalid value here is a bug.
    "22": _FAULT,
    "23": _FAULT,
    "24": _FAULT,
    "25": _FAULT,
    # The statement was prepared on a connection that a pooler has handed to another client.
    "26": _NOT_NOW,
    "27": _FAULT,
    # The role or password was refused, which no request can change.
    "28": _NOT_NOW,
    "2B": _FAULT,
    "2D": _FAULT,
    "2F": _FAULT,
    "34": _FAULT,
    "38": _FAULT,
    "39": _FAULT,
    "3B": _FAULT,
    # No such database: it is being renamed into place.
    "3D": _NOT_NOW,
    # No such schema: it is being restored.
    "3F": _NOT_NOW,
    "40": _AGAIN,
    # A test prepares every query, so the query matches the schema.
    "42": _FAULT,
    "44": _FAULT,
    # Connections, memory, disk space.
    "53": _NOT_NOW,
    "54": _FAULT,
    # `ALTER DATABASE … ALLOW_CONNECTIONS false` (55000), a database in use (55006), a lock (55P03).
    "55": _NOT_NOW,
    # Shutdown, recovery, timeouts, a dropped database.
    "57": _NOT_NOW,
    # Input and output, lost files.
    "58": _NOT_NOW,
    # A snapshot too old.
    "72": _AGAIN,
    "F0": _NOT_NOW,
    "HV": _FAULT,
    "P0": _FAULT,
    "XX": _NOT_NOW,
}
"""By the first two characters. A class that is not listed is a bug."""

BY_SQLSTATE: Mapping[str, Meaning] = {
    # The primary has become a standby. A new connection finds the new primary.
    "25006": _NOT_NOW,
    # Gatekey's transactions end with their first error: this one is another client's, on a pooler's connection.
    "25P02": _NOT_NOW,
    # This process was stopped or blocked within a transaction.
    "25P03": _NOT_NOW,
    "25P04": _NOT_NOW,
    # It may have been committed, so it must not be retried.
    "40003": _NOT_NOW,
    # A constraint is checked at the commit.
    "40002": _FAULT,
    # The servers' role does not have its privileges yet, as in the middle of a restore.
    "42501": _NOT_NOW,
    # Columns, functions, types and tables that a restore has not made yet, or a migration.
    "42703": _NOT_NOW,
    "42883": _NOT_NOW,
    "42704": _NOT_NOW,
    "42P01": _NOT_NOW,
    # A restore has created the table `revision`, and not its row yet.
    "P0002": _NOT_NOW,
    # One row or index is damaged.
    "XX001": _FAULT,
    "XX002": _FAULT,
}
"""Exceptions to their class."""

BY_TYPE: Mapping[type, Meaning] = {
    # The schema was migrated meanwhile, and the driver's plans are for the old one.
    asyncpg.InvalidCachedStatementError: _AGAIN,
    asyncpg.OutdatedSchemaCacheError: _AGAIN,
    # The connection broke, or leads to another host than the primary.
    asyncpg.InternalClientError: _NOT_NOW,
    # A URL that cannot be understood.
    ClientConfigurationError: _FAULT,
    # A connection that is closed.
    asyncpg.InterfaceError: _NOT_NOW,
    # Sockets, names, TLS.
    OSError: _NOT_NOW,
    TimeoutError: _NOT_NOW,
    EOFError: _NOT_NOW,
}
"""Errors without an SQLSTATE, and those whose type says more than their SQLSTATE. The nearest type counts."""


def meaning_of(error: BaseException) -> Meaning:
    """Return what an error means. An unknown error is a bug."""
    for kind in type(error).__mro__:
        if kind in BY_TYPE:
            return BY_TYPE[kind]
    sqlstate = str(getattr(error, "sqlstate", ""))
    return BY_SQLSTATE.get(sqlstate) or BY_CLASS.get(sqlstate[:2], _FAULT)
