"""The migrations of the schema: its versions, running migrations, and granting servers their privileges.

Migrations only go forward. They hold locks briefly or give up, and leave a schema that the previous release can
still use.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg

from gatekey_server.store import sessions
from gatekey_server.store.database import Database, Primary, translated_errors
from gatekey_server.store.lock import MigrationLock, Tell

_MIGRATIONS = Path(__file__).parent / "migrations" / "versions"
_ADVISORY_LOCK = 7016996765293437282
_CONNECT_TIMEOUT_S = 60
_SLOW_S = 3
_LOCK_TIMEOUT_S = 5
_STATEMENT_TIMEOUT_S = 300

# The privileges that a server needs, by kind of object, with the SQL word for the kind.
_PRIVILEGES = {
    "database": ("database", "connect"),
    "schema": ("schema", "usage"),
    "table": ("table", "select, insert, update, delete"),
    # Writing through a view would write to the tables below it.
    "view": ("table", "select"),
    "sequence": ("sequence", "usage"),
    "routine": ("routine", "execute"),
}
_LESS = {
    ("table", "audit_event"): "select, insert",
    ("table", "audit_receipt"): "select, insert",
    ("table", "schema_version"): "select",
}

# All objects of the schema, so that those of later migrations are included.
_OBJECTS = """
    with gatekey as (select relnamespace as oid from pg_class where oid = 'schema_version'::regclass),
    extension as (select classid, objid from pg_depend where deptype = 'e'),
    thing (kind, name, id, owner, is_given) as (
        select 'database', quote_ident(datname), datname, datdba,
            has_database_privilege($1, datname, 'connect')
        from pg_database where datname = current_database()
        union all
        select 'schema', quote_ident(nspname), nspname, nspowner, has_schema_privilege($1, oid, 'usage')
        from pg_namespace join gatekey using (oid)
        union all
        select
            case relkind when 'S' then 'sequence' when 'r' then 'table' when 'p' then 'table' else 'view' end,
            pg_class.oid::regclass::text, relname, relowner, false
        from pg_class join gatekey on relnamespace = gatekey.oid
        where relkind in ('r', 'p', 'v', 'm', 'S') and ('pg_class'::regclass, pg_class.oid) not in (table extension)
        union all
        select 'routine', pg_proc.oid::regprocedure::text, proname, proowner, false
        from pg_proc join gatekey on pronamespace = gatekey.oid
        where ('pg_proc'::regclass, pg_proc.oid) not in (table extension)
    )
    select kind, name, id, owner, is_given, pg_has_role(owner, 'usage') as is_ours from thing
"""
# Effective privileges: they also come from PUBLIC, from other roles, and from roles that it can switch to.
_TOO_MUCH = """
    with audit as (select oid, relnamespace from pg_class where oid = 'audit_event'::regclass)
    select rolname as role, case
        when rolsuper then 'is a superuser'
        when pg_roles.oid = any($2::oid[]) then 'owns the database, its schema or something in it'
        when rolcreaterole then 'can make itself a member of other roles'
        when has_schema_privilege(pg_roles.oid, relnamespace, 'create') then 'can create in the schema'
        else 'can change `audit_event`'
    end as why
    from pg_roles, audit
    where pg_has_role($1::name, pg_roles.oid, 'member') and (
        rolsuper or rolcreaterole or pg_roles.oid = any($2::oid[])
        or has_schema_privilege(pg_roles.oid, relnamespace, 'create')
        or has_any_column_privilege(pg_roles.oid, audit.oid, 'update')
        or has_table_privilege(pg_roles.oid, audit.oid, 'delete, truncate, trigger')
    )
    -- Where it comes from another role, that one is named.
    order by rolname = $1 and (rolsuper or pg_roles.oid = any($2::oid[])) desc, rolname = $1, rolname
    limit 1
"""


class SchemaError(Exception):
    """The migrating role lacks a privilege, or the servers' role cannot be granted its own. For the operator."""


def newest_version() -> str:
    """Return the version of the schema that this release needs."""
    # Versions have four digits.
    return max(path.name[:4] for path in _MIGRATIONS.glob("[0-9]*.py"))


async def current_version(database: Database) -> str | None:
    """Return the version of the database's schema; None where there is none."""
    (found,) = await database.fetch("select to_regclass('schema_version') is not null as is_there")
    if not found["is_there"]:
        return None
    rows = await database.fetch("select version_num from schema_version")
    return str(rows[0]["version_num"]) if rows else None


async def migrate(
    url: str,
    *,
    version: str = "head",
    grant_to: str | None = None,
    lock_timeout_s: float = 60,
    tell: Tell = lambda _: None,
) -> str:
    """Upgrade the schema to a version, and return the version that it has afterwards. A newer schema is left unchanged.

    Only one migration runs at a time. The next one continues an interrupted one.

    The role `grant_to` is then granted what a server needs, and loses its other privileges in this database. It can
    append audit events, and neither change nor delete any. `tell` receives a line whenever the migration waits.

    Raises `Unavailable` where the database cannot be reached, `UnfitError` where it cannot be used,
    `LockTimeoutError` where a lock could not be taken in time, and `SchemaError` where privileges are missing, or
    where `grant_to` does not exist or has more privileges from elsewhere.
    """
    primary = Primary(url)
    slow = f"the database does not respond yet; giving up after {_CONNECT_TIMEOUT_S} s"
    note = asyncio.get_running_loop().call_later(_SLOW_S, tell, slow)
    try:
        await sessions.check(primary, _CONNECT_TIMEOUT_S)
    finally:
        note.cancel()
    with translated_errors():
        async with AsyncExitStack() as stack:
            # One session for the work, one that holds the lock meanwhile, and one that finds what blocks them.
            worker, runner, watcher = [await stack.enter_async_context(_session(primary)) for _ in range(3)]
            lock = MigrationLock(_ADVISORY_LOCK, runner, watcher, tell)
            async with lock.held(lock_timeout_s):
                return await lock.guard(_work(worker, version, grant_to), worker)


@asynccontextmanager
async def _session(primary: Primary) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    settings = {
        "application_name": "gatekey-migrate",
        # Waiting for a lock blocks everyone behind it, so give up early. The migration is then retried.
        "lock_timeout": f"{_LOCK_TIMEOUT_S}s",
        "statement_timeout": f"{_STATEMENT_TIMEOUT_S}s",
        "timezone": "UTC",
    }
    connection = await primary.connect(timeout=_CONNECT_TIMEOUT_S, server_settings=settings)
    try:
        yield connection
    finally:
        connection.terminate()


async def _work(connection: "asyncpg.Connection[asyncpg.Record]", version: str, grant_to: str | None) -> str:
    # Imported here only: Alembic and SQLAlchemy take longer to load than the rest of a server, and more memory.
    from gatekey_server.store import upgrade  # noqa: PLC0415

    try:
        await upgrade.run(connection, version, newest=newest_version())
    except asyncpg.InsufficientPrivilegeError as error:
        raise SchemaError(f"the role that migrates may not do that: {error}") from error
    except asyncpg.SyntaxOrAccessError as error:
        raise SchemaError(f"something is in the way that is not Gatekey's: {error}") from error
    if grant_to is not None:
        async with connection.transaction():
            await _grant(connection, grant_to)
    return str(await connection.fetchval("select version_num from schema_version"))


async def _grant(connection: asyncpg.Connection, role: str) -> None:
    grantee = await connection.fetchval("select quote_ident(rolname) from pg_roles where rolname = $1", role)
    if grantee is None:
        raise _not_granted(f"there is no role `{role}`")
    things = await connection.fetch(_OBJECTS, role)
    for thing in things:
        word, privileges = _PRIVILEGES[thing["kind"]]
        on = f"on {word} {thing['name']}"
        if not thing["is_ours"]:
            if thing["is_given"]:
                continue
            # PostgreSQL would grant nothing and only warn.
            raise _not_granted(f"{word} {thing['name']} belongs to another role; migrate as that one")
        granted = _LESS.get((thing["kind"], thing["id"]), privileges)
        await connection.execute(f"revoke all {on} from {grantee} cascade; grant {granted} {on} to {grantee}")
    too_much = await connection.fetchrow(_TOO_MUCH, role, [thing["owner"] for thing in things])
    if too_much is not None:
        who = "" if too_much["role"] == role else f" is a member of `{too_much['role']}`, which"
        raise _not_granted(f"the role `{role}`{who} {too_much['why']}")


def _not_granted(why: str) -> SchemaError:
    return SchemaError(f"nothing was granted: {why}")
