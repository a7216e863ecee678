"""The schema's migrations: which are needed, which are there, how to run them, and what a server may do afterwards.

Migrations only go forward, hold their locks briefly or give up, and leave a schema that the
previous release can go on using.
"""

import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection as SyncConnection
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from gatekey_server.store.database import Database, Primary, checked_url, translated_errors

_ADVISORY_LOCK = 7016996765293437282
_CONNECT_TIMEOUT_S = 60
_LOCK_TIMEOUT_S = 5
_LOCK_RETRY_S = 0.1
_STATEMENT_TIMEOUT_S = 300

# What a server needs, by kind of object: the word for it, and the privileges.
_PRIVILEGES = {
    "database": ("database", "connect"),
    "schema": ("schema", "usage"),
    "table": ("table", "select, insert, update, delete"),
    # Whoever could write through a view could write to what is below it.
    "view": ("table", "select"),
    "sequence": ("sequence", "usage"),
    "routine": ("routine", "execute"),
}
_LESS = {
    ("table", "audit_event"): "select, insert",
    ("table", "audit_receipt"): "select, insert",
    ("table", "schema_version"): "select",
}

# Everything in the schema, so that nothing is forgotten that a later migration adds.
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
# By the effect: privileges also come from PUBLIC and from other roles, and from those that it can switch to.
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
    """The role that migrates may not do so, or the one for servers cannot be given its due; for the operator."""


def newest_version() -> str:
    """The version of the schema that this release needs."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise AssertionError("the package holds no migrations")
    return head


async def current_version(database: Database) -> str | None:
    """The version of the database's schema; None where it holds none."""
    try:
        rows = await database.fetch("select version_num from schema_version")
    except asyncpg.UndefinedTableError:
        return None
    return str(rows[0]["version_num"]) if rows else None


async def migrate(dsn: str, *, version: str = "head", grant_to: str | None = None) -> None:
    """Bring the schema up to a version. Two at once queue; an interrupted one is taken up by the next.

    The role `grant_to` is then given what a server needs, and loses what else it has been given in this
    database: it can add audit events, and neither change nor remove any.

    Raises `Unavailable` where the database cannot be reached or a lock was not to be had in time, and
    `SchemaError` where privileges are missing, or where `grant_to` is not there or could do more all the same.
    """
    with translated_errors():
        # The driver reads the URL itself, so that every form of it means here what it means to the server.
        async with checked_url():
            connection = await Primary(dsn).connect(
                timeout=_CONNECT_TIMEOUT_S, server_settings={"application_name": "gatekey-migrate"}
            )
        engine = create_async_engine("postgresql+asyncpg://", async_creator=_giver(connection), poolclass=NullPool)
        try:
            async with engine.connect() as wrapped:
                await wrapped.run_sync(_upgrade, version)
                if grant_to is not None:
                    async with connection.transaction():
                        await _grant(connection, grant_to)
        except DBAPIError as error:
            # SQLAlchemy wraps the driver's error twice.
            cause = (error.orig and error.orig.__cause__) or error
            if isinstance(cause, asyncpg.InsufficientPrivilegeError):
                raise SchemaError(f"the role that migrates may not do that: {cause}") from error
            raise cause from None
        finally:
            await engine.dispose()
            await connection.close()


def _giver(connection: asyncpg.Connection) -> Callable[[], Awaitable[asyncpg.Connection]]:
    async def give() -> asyncpg.Connection:
        return connection

    return give


def _upgrade(connection: SyncConnection, version: str) -> None:
    # Asked again and again: whoever waits inside a statement keeps an index from being built concurrently.
    while not connection.execute(text(f"select pg_try_advisory_lock({_ADVISORY_LOCK})")).scalar_one():
        connection.commit()
        time.sleep(_LOCK_RETRY_S)
    # Whoever waits for a lock makes everyone behind it wait: give up early and be called again.
    connection.execute(text(f"set lock_timeout = '{_LOCK_TIMEOUT_S}s'"))
    connection.execute(text(f"set statement_timeout = '{_STATEMENT_TIMEOUT_S}s'"))
    connection.commit()
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, version)
    connection.commit()


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
            # PostgreSQL would only warn that it granted nothing.
            raise _not_granted(f"{word} {thing['name']} belongs to another role; migrate as that one")
        granted = _LESS.get((thing["kind"], thing["id"]), privileges)
        await connection.execute(f"revoke all {on} from {grantee} cascade; grant {granted} {on} to {grantee}")
    too_much = await connection.fetchrow(_TOO_MUCH, role, [thing["owner"] for thing in things])
    if too_much is not None:
        who = "" if too_much["role"] == role else f" is a member of `{too_much['role']}`, which"
        raise _not_granted(f"the role `{role}`{who} {too_much['why']}")


def _not_granted(why: str) -> SchemaError:
    return SchemaError(f"nothing was granted: {why}")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config
