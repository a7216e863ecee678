"""The revision, the changes behind it, and who has applied them; the revision in audit events.

Triggers record every change of what a decision is made from, whoever makes it: a command, a
cascade, or SQL run by hand. Deferred to the end of the transaction, so that the lock on the
revision, which makes its order that of the commits, is held only while committing.
"""

from alembic import op

revision = "0003"
down_revision = "0002"

# What each table's changes are recorded as. All columns left out stand for more: a tenant alone for
# everything in it, none at all for everything.
SCOPES = {
    "product": ("product_id",),
    "tenant": ("tenant_uid",),
    "principal": ("tenant_uid", "principal_uid"),
    "api_key": ("tenant_uid", "key_uid"),
    "secret": ("tenant_uid", "key_uid", "digest"),
}

# A statement that changes more rows than this is recorded by its tenants, and one of more tenants as everything.
MAX_ROWS = 100

TABLES = (
    """
    create table if not exists revision (
        singleton boolean primary key default true check (singleton),
        current bigint not null default 0,
        stamp uuid not null default gen_random_uuid()
    ) with (fillfactor = 10)
    """,
    "insert into revision default values on conflict do nothing",
    "comment on column revision.stamp is 'Tells apart two histories that reach the same number, as after a failover'",
    """
    create table if not exists change (
        change_uid bigint generated always as identity primary key,
        transaction xid8 not null default pg_current_xact_id(),
        revision bigint,
        stamp uuid,
        product_id text,
        tenant_uid bigint,
        principal_uid bigint,
        key_uid uuid,
        digest bytea
    )
    """,
    "comment on column change.revision is 'Null only until the end of the transaction'",
    "create index concurrently if not exists change_by_transaction on change (transaction)",
    "create index concurrently if not exists change_by_revision on change (revision)",
    """
    create table if not exists process (
        process_uid uuid primary key,
        applied_revision bigint not null,
        last_poll uuid not null default gen_random_uuid(),
        start_time timestamptz not null default now()
    ) with (fillfactor = 50)
    """,
    "comment on column process.last_poll is 'Tells whether the process has polled since: a number could come twice'",
    """
    create or replace function take_revision() returns bigint
    language plpgsql set search_path from current as $$
    declare
        taken bigint;
        its_stamp uuid;
    begin
        if not exists (
            select from change where transaction = pg_current_xact_id_if_assigned() and revision is null
        ) then
            return null;
        end if;
        update revision set current = current + 1, stamp = gen_random_uuid()
        returning current, stamp into strict taken, its_stamp;
        update change set revision = taken, stamp = its_stamp
        where transaction = pg_current_xact_id() and revision is null;
        perform pg_notify('gatekey_change', '');
        return taken;
    end
    $$
    """,
    """
    create or replace function settle_change() returns trigger
    language plpgsql set search_path from current as $$
    begin
        perform take_revision();
        return null;
    end
    $$
    """,
    "drop trigger if exists change_settles on change",
    """
    create constraint trigger change_settles after insert on change deferrable initially deferred
    for each row execute function settle_change()
    """,
    # A truncation fires no triggers for the rows.
    """
    create or replace function record_truncation() returns trigger
    language plpgsql set search_path from current as $$
    begin
        insert into change default values;
        return null;
    end
    $$
    """,
    # Not a part of the event's hash: how long it took is known only after the event was written.
    """
    create table if not exists audit_receipt (
        product_id text not null,
        tenant_id text not null,
        sequence bigint not null,
        wait_ms bigint not null,
        primary key (product_id, tenant_id, sequence)
    )
    """,
    "alter table audit_event add column if not exists revision bigint",
)


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for statement in TABLES:
            op.execute(statement)
        for table, columns in SCOPES.items():
            op.execute(_function(table, columns))
            for statement in _triggers(table):
                op.execute(statement)


def _function(table: str, columns: tuple[str, ...]) -> str:
    listed = ", ".join(columns)
    both = f"(select {listed} from old_rows union select {listed} from new_rows) as changed"
    return f"""
    create or replace function record_{table}_change() returns trigger
    language plpgsql set search_path from current as $$
    begin
        if tg_op = 'INSERT' then
            {_record(columns, "new_rows")}
        elsif tg_op = 'DELETE' then
            {_record(columns, "old_rows")}
        else
            {_record(columns, both)}
        end if;
        return null;
    end
    $$
    """


def _record(columns: tuple[str, ...], rows: str) -> str:
    listed = ", ".join(columns)
    by_tenant = (
        ""
        if "tenant_uid" not in columns
        else f"""
            elsif {_count("distinct tenant_uid", rows)} <= {MAX_ROWS} then
                insert into change (tenant_uid) select distinct tenant_uid from {rows};"""
    )
    return f"""
            if {_count("1", rows)} <= {MAX_ROWS} then
                insert into change ({listed}) select {listed} from {rows};{by_tenant}
            else
                insert into change default values;
            end if;"""


def _count(what: str, rows: str) -> str:
    # No further than it matters.
    return f"(select count(*) from (select {what} from {rows} limit {MAX_ROWS + 1}) as counted)"


def _triggers(table: str) -> list[str]:
    transitions = {
        "insert": "referencing new table as new_rows",
        "delete": "referencing old table as old_rows",
        "update": "referencing old table as old_rows new table as new_rows",
        "truncate": "",
    }
    functions = {"truncate": "record_truncation"}
    return [
        f"create or replace trigger record_{event} after {event} on {table} {rows}"
        f" for each statement execute function {functions.get(event, f'record_{table}_change')}()"
        for event, rows in transitions.items()
    ]
