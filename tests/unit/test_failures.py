"""What every error of the driver means: none is left to chance."""

import inspect
import socket
import ssl
from collections.abc import Iterator

import asyncpg
import pytest
from asyncpg import exceptions
from gatekey.core.errors import Unavailable
from gatekey_server.store.database import translated_errors
from gatekey_server.store.failures import BY_CLASS, BY_SQLSTATE, Meaning, meaning_of

ROOTS = {asyncpg.PostgresError, asyncpg.FatalPostgresError, exceptions.UnknownPostgresError}
"""What the driver never raises without an SQLSTATE of its own."""


def of_the_driver() -> Iterator[type[Exception]]:
    """Yield all that the driver can raise, but for warnings."""
    for _, found in inspect.getmembers(exceptions, inspect.isclass):
        if issubclass(found, Exception) and not issubclass(found, Warning) and found not in ROOTS:
            yield found


NOT_NOW = {
    "08000", "08001", "08003", "08004", "08006", "08007", "08P01", "25006", "25P02", "25P03", "25P04", "26000",
    "28000", "28P01", "3D000", "3F000", "40003", "42501", "42703", "42704", "42883", "42P01", "53000", "53100",
    "53200", "53300", "53400", "55000", "55006", "55P02", "55P03", "55P04", "57000", "57014", "57P01", "57P02",
    "57P03", "57P04", "57P05", "58000", "58030", "58P01", "58P02", "58P03", "F0000", "F0001", "P0002", "XX000",
}  # fmt: skip
AGAIN = {"40000", "40001", "40P01", "72000"}


@pytest.mark.parametrize("kind", [*of_the_driver()], ids=lambda kind: kind.__name__)
def test_each_error_of_the_driver_has_a_meaning(kind: type[Exception]) -> None:
    sqlstate = getattr(kind, "sqlstate", None)
    found = meaning_of(kind("some text"))
    if issubclass(kind, asyncpg.PostgresError) and kind is not asyncpg.InvalidCachedStatementError:
        assert sqlstate is not None
        # A class that the driver knows and the table does not would be a fault by default.
        assert sqlstate[:2] in BY_CLASS
        expected = Meaning.NOT_NOW if sqlstate in NOT_NOW else Meaning.AGAIN if sqlstate in AGAIN else Meaning.FAULT
        assert found is expected, sqlstate
    else:
        assert found is {
            asyncpg.InvalidCachedStatementError: Meaning.AGAIN,
            asyncpg.OutdatedSchemaCacheError: Meaning.AGAIN,
            exceptions.ClientConfigurationError: Meaning.FAULT,
        }.get(kind, Meaning.NOT_NOW)


def test_the_table_says_nothing_twice() -> None:
    assert {sqlstate for sqlstate, meaning in BY_SQLSTATE.items() if BY_CLASS.get(sqlstate[:2]) is meaning} == set()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionRefusedError(), Meaning.NOT_NOW),
        (ConnectionResetError(), Meaning.NOT_NOW),
        (BrokenPipeError(), Meaning.NOT_NOW),
        (FileNotFoundError("no socket"), Meaning.NOT_NOW),
        (socket.gaierror(-2, "name unknown"), Meaning.NOT_NOW),
        (TimeoutError(), Meaning.NOT_NOW),
        (ssl.SSLError(1, "handshake"), Meaning.NOT_NOW),
        (ssl.SSLCertVerificationError("expired"), Meaning.NOT_NOW),
        (EOFError(), Meaning.NOT_NOW),
        # What neither the driver nor this release knows by name: its class decides, and at last the default.
        (asyncpg.PostgresError.new({"C": "55ZZZ", "M": ""}), Meaning.NOT_NOW),
        (asyncpg.PostgresError.new({"C": "57ZZZ", "M": ""}), Meaning.NOT_NOW),
        (asyncpg.PostgresError.new({"C": "40ZZZ", "M": ""}), Meaning.AGAIN),
        (asyncpg.PostgresError.new({"C": "ZZ000", "M": ""}), Meaning.FAULT),
        (ValueError(), Meaning.FAULT),
        (KeyError(), Meaning.FAULT),
    ],
    ids=repr,
)
def test_errors_of_the_connection_and_unknown_ones(error: Exception, expected: Meaning) -> None:
    assert meaning_of(error) is expected


@pytest.mark.parametrize(
    ("sqlstate", "reason"), [("55000", "DATABASE_UNAVAILABLE"), ("40001", "TRANSACTION_CONFLICT"), ("22003", None)]
)
def test_only_the_meaning_gets_out(sqlstate: str, reason: str | None) -> None:
    error = asyncpg.PostgresError.new({"C": sqlstate, "M": "select secret from somewhere"})
    with pytest.raises(Exception) as raised, translated_errors():  # noqa: PT011 - which one is looked at
        raise error
    if reason is None:
        assert raised.value is error
    else:
        assert isinstance(raised.value, Unavailable)
        assert raised.value.reason == reason
        assert raised.value.__cause__ is error
        assert "secret" not in str(raised.value)
