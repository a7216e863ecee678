"""URLs of databases as providers write them and as libpq reads them."""

import os
import socket
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from gatekey_server.store import dsn
from gatekey_server.store.database import why_not
from gatekey_server.store.dsn import Dsn, DsnError

from tests.support.certificates import Authority

U = "postgresql://u:hunter2@h/d"


def parse(url: str, **environment: str) -> Dsn:
    """Read a URL with these variables of libpq and no others."""
    return dsn.parse(url, {"HOME": "/nowhere", **environment})


def problems(url: str, **environment: str) -> list[str]:
    """What is wrong with a URL; proves that no password is repeated."""
    with pytest.raises(DsnError) as raised:
        parse(url, **environment)
    assert "hunter2" not in str(raised.value)
    return raised.value.problems


@pytest.mark.parametrize(
    ("url", "hosts", "user", "password", "database"),
    [
        ("postgresql://u:p@h/d", [("h", None)], "u", "p", "d"),
        ("postgres://u:p@h:5433/d", [("h", 5433)], "u", "p", "d"),
        ("postgresql://u%40tenant:p%40%2F%3A%3F%23%25%20%C3%A4@h/d%2F1", [("h", None)], "u@tenant", "p@/:?#% ä", "d/1"),
        ("postgresql://u:p?a#b&c+d@h/d", [("h", None)], "u", "p?a#b&c+d", "d"),
        ("postgresql://u:a:b@h/d", [("h", None)], "u", "a:b", "d"),
        ("postgresql://u:päss@h/d", [("h", None)], "u", "päss", "d"),
        ("postgresql://u@h", [("h", None)], "u", None, "u"),
        ("postgresql://u@h/", [("h", None)], "u", None, "u"),
        ("postgresql://u@h?dbname=d", [("h", None)], "u", None, "d"),
        ("postgresql://u@/d", [(None, None)], "u", None, "d"),
        ("postgresql:///d?user=u&password=a+b", [(None, None)], "u", "a+b", "d"),
        (
            "postgresql://u:p@[::1]:2,h,[fe80::1%25eth0]/d",
            [("::1", 2), ("h", None), ("fe80::1%eth0", None)],
            "u",
            "p",
            "d",
        ),
        ("postgresql://u@one:1,two:2/d", [("one", 1), ("two", 2)], "u", None, "d"),
        ("postgresql://u@%2Fvar%2Frun:5433/d", [("/var/run", 5433)], "u", None, "d"),
        ("postgresql://u@/d?host=/a,/b&port=1", [("/a", 1), ("/b", 1)], "u", None, "d"),
        ("postgresql://u@/d?host=one,::1&port=1,2", [("one", 1), ("::1", 2)], "u", None, "d"),
        ("postgresql://u@h/d?host=other", [("other", None)], "u", None, "d"),
    ],
)
def test_where_and_who(url: str, hosts: list[Any], user: str, password: str | None, database: str) -> None:
    read = parse(url)
    assert list(read.hosts) == hosts
    assert (read.user, read.password, read.database) == (user, password, database)
    assert "hunter2" not in repr(parse(U))


@pytest.mark.parametrize(
    "query",
    [
        "channel_binding=prefer",
        "channel_binding=disable",
        "connect_timeout=10",
        "connect_timeout=0",
        "sslmode=require&channel_binding=prefer&connect_timeout=10&application_name=x",
        "target_session_attrs=read-write",
        "target_session_attrs=any",
        "target_session_attrs=primary",
        "keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=3&tcp_user_timeout=0",
        "gssencmode=disable",
        "gssencmode=prefer",
        "load_balance_hosts=random",
        "client_encoding=utf8",
        "fallback_application_name=x",
        "options=-c%20search_path%3Dx",
        "options=endpoint%3Dep-cool-name-123456",
        "sslmode=disable",
        "sslcompression=0",
        "sslsni=1",
        "replication=false",
        "ssl=true",
        "sslrootcert=system",
        "sslrootcert=system&sslmode=verify-full&sslnegotiation=direct",
        "krbsrvname=postgres",
        "min_protocol_version=3.0&max_protocol_version=latest",
        "",
    ],
)
def test_what_providers_write_is_understood(query: str) -> None:
    read = parse(f"{U}?{query}")
    # The driver would send on to the server what it does not know.
    known = {"sslmode", "sslrootcert", "sslnegotiation", "krbsrvname"}
    assert read.security.keys() <= known
    assert read.arguments(*read.hosts[0])["password"] == "hunter2"


def test_what_parameters_do() -> None:
    read = parse(f"{U}?connect_timeout=7&application_name=payments&options=-c%20a%3Db&sslmode=require")
    assert read.connect_timeout_s == 7
    assert read.session("gatekey-changes") == {"application_name": "payments-changes", "options": "-c a=b"}
    assert read.arguments("h", 1)["dsn"] == "postgresql://?sslmode=require"
    assert parse(f"{U}?ssl=true").security == {"sslmode": "require"}
    assert parse(f"{U}?sslmode=disable&sslmode=require").security == {"sslmode": "require"}
    context = parse(f"{U}?sslrootcert=system").arguments("h", None)["ssl"]
    assert context.check_hostname


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sslmode=bogus", "`sslmode=bogus` must be one of disable, allow, prefer, require, verify-ca, verify-full"),
        ("sslmode=", "`sslmode` must be one of"),
        ("ssl=yes", "`ssl` is not a parameter of PostgreSQL"),
        ("sslmod=require", "`sslmod` is not a parameter of PostgreSQL: is it `sslmode`?"),
        ("ssl_mode=require", "is it `sslmode`?"),
        ("connect_timout=3", "is it `connect_timeout`?"),
        ("connect_timeout=soon", "`connect_timeout=soon` must be a whole number"),
        ("connect_timeout=1.5", "must be a whole number"),
        ("keepalives=yes", "`keepalives=yes` must be a whole number"),
        (
            "channel_binding=require",
            "`channel_binding=require` must be one of disable, prefer: the driver does not bind",
        ),
        ("gssencmode=require", "`gssencmode=require` must be one of"),
        ("target_session_attrs=read-only", "Gatekey writes"),
        ("target_session_attrs=standby", "Gatekey writes"),
        ("target_session_attrs=prefer-standby", "Gatekey writes"),
        ("load_balance_hosts=yes", "`load_balance_hosts=yes`"),
        ("client_encoding=latin1", "UTF-8"),
        ("replication=database", "ordinary connection"),
        ("require_auth=scram-sha-256", "`require_auth=scram-sha-256` cannot be used"),
        ("requirepeer=postgres", "`requirepeer=postgres` cannot be used"),
        ("hostaddr=10.0.0.1", "`hostaddr=10.0.0.1` cannot be used"),
        ("schema=public", "`schema=public` cannot be used: it is Prisma's"),
        ("pgbouncer=true", "A pooler must pool sessions"),
        ("connection_limit=1", "GATEKEY_MAX_CONNECTIONS"),
        ("statement_timeout=1", "GATEKEY_STATEMENT_TIMEOUT_S"),
        ("search_path=x", "`options=-c%20NAME%3DVALUE`"),
        ("sslmode", "`sslmode` without a value"),
        ("port=1,2", "has 2 ports for 1 hosts"),
        ("port=x", "no number from 1 to 65535"),
        ("port=0", "no number from 1 to 65535"),
        ("port=65536", "no number from 1 to 65535"),
        ("host=a,,b", "an empty host"),
        ("sslrootcert=/no/such/file", "`sslrootcert=/no/such/file`: No such file or directory"),
        ("passfile=/no/such/file", "`passfile=/no/such/file`: No such file or directory"),
        ("sslcert=/", "`sslcert=/`: Is a directory"),
        ("sslmode=verify-full", "needs `sslrootcert`"),
        ("sslrootcert=system&sslmode=require", "needs `sslmode=verify-full`"),
        ("sslnegotiation=direct", "needs `sslmode=require`"),
        ("service=none", "`service=none`: there is no such service in"),
        ("sslpassword=%zz", "has a `%`"),
        ("user=%ff", "not UTF-8"),
    ],
)
def test_what_cannot_be_had_is_named(query: str, expected: str) -> None:
    assert any(expected in line for line in problems(f"{U}?{query}"))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@x@h/d",
        "postgresql://u:/hunter2@h/d",
        "postgresql://u:a/hunter2@h/d",
        "postgresql://u:a/b?hunter2=x@h/d",
        "postgresql://u:a/b?sslmode=hunter2@h/d",
        "postgresql://u:a/?hunter2&b=c@h/d",
        "postgresql://u:hunter2%@h/d",
        "postgresql://u:hunter2%zz@h/d",
        "postgresql://u:hunter2%00@h/d",
        "postgresql://u:hunter2%ff@h/d",
        "postgresql://u:hunter2 @h/d",
        "postgresql://u:hunter2\n@h/d",
        "postgresql://u:hunter2@[::1/d",
        "postgresql://u:hunter2@::1/d",
        "postgresql://u:hunter2@h:p/d",
        "postgresql://u:hunter2",
        "postgresql://h/d?password=hunter2%",
        "postgresql://u@h/d?password=a&hunter2=b",
        "postgresql://u@h/d?password=a&hunter2",
        "mysql://u:hunter2@h/d",
        "postgresql+asyncpg://u:hunter2@h/d",
        "jdbc:postgresql://u:hunter2@h/d",
        "host=h password=hunter2",
        "hunter2",
    ],
)
def test_no_problem_repeats_a_password(url: str) -> None:
    (line,) = problems(url)
    assert line


def test_all_problems_are_told_at_once() -> None:
    lines = problems(f"{U}?sslmode=bogus&schema=x&connect_timeout=x&port=0&sslcert=/none", PGGSSENCMODE="require")
    assert len(lines) == 6


def test_libpq_s_own_variables_say_what_the_url_does_not() -> None:
    read = parse("postgresql:///d", PGHOST="one,two", PGPORT="5433", PGUSER="u", PGPASSWORD="p", PGSSLMODE="require")
    assert read.hosts == (("one", 5433), ("two", 5433))
    assert (read.user, read.password, read.security) == ("u", "p", {"sslmode": "require"})
    assert parse(U, PGUSER="other", PGDATABASE="other").user == "u"
    assert problems(U, PGSSLMODE="bogus") == [
        "PGSSLMODE: `sslmode=bogus` must be one of disable, allow, prefer, require, verify-ca, verify-full"
    ]
    assert problems(U, PGPORT="x") == ["PGPORT is no number from 1 to 65535"]
    assert problems(U, PGREQUIREAUTH="none")[0].startswith("PGREQUIREAUTH: ")


def test_a_service_says_what_the_url_does_not(tmp_path: Path) -> None:
    file = tmp_path / "services"
    file.write_text(
        "# ours\n[main]\nhost=one\nport=5433\nuser=u\npassword=100%\nsslmode=disable\n[bad]\nsslmode=bogus\n"
    )
    read = parse("postgresql://other@/d?service=main", PGSERVICEFILE=str(file))
    assert (read.hosts, read.user, read.password) == ((("one", 5433),), "other", "100%")
    assert read.security == {"sslmode": "disable"}
    assert f"`sslmode` in {file}: " in problems(U + "?service=bad", PGSERVICEFILE=str(file))[0]


def test_files_of_tls_are_read_at_the_start(tmp_path: Path) -> None:
    root, junk = tmp_path / "root.pem", tmp_path / "junk.pem"
    root.write_bytes(Authority("root").pem)
    junk.write_text("not a certificate")
    assert parse(f"{U}?sslmode=verify-full&sslrootcert={root}").security["sslrootcert"] == str(root)
    assert "PEM" in problems(f"{U}?sslmode=verify-full&sslrootcert={junk}")[0]
    assert "PEM" in problems(f"{U}?sslcert={root}&sslkey={junk}&sslmode=require")[0]


def test_a_process_whose_user_has_no_name_must_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert problems("postgresql://h/d") == ["names no user, and the user id 12345 of this process has no name"]
    assert parse("postgresql://u@h/d").user == "u"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), "no response within 2 s"),
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 9)"), "Connection refused"),
        (FileNotFoundError(2, "No such file", "/x"), "No such file or directory: /x"),
        (
            PermissionError(13, "Permission denied", "/root/.postgresql/postgresql.key"),
            "HOME leads to the home of another",
        ),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (asyncpg.InvalidPasswordError("password\nauthentication failed"), "password authentication failed"),
        (asyncpg.TargetServerAttributeNotMatched(), "it takes no writes"),
        (asyncpg.DuplicatePreparedStatementError("x"), "a pooler shares sessions"),
        (UnicodeError("label too long"), "not a name that can be looked up"),
        (OSError(), "OSError"),
    ],
)
def test_what_keeps_a_connection_from_being_made_is_one_line(error: Exception, expected: str) -> None:
    line = why_not(error, 2)
    assert expected in line
    assert "\n" not in line
