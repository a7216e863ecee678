"""A restored or copied database begins a history of its own, which everyone can tell from the one that it came from.

A dump has the revision and the stamp of the moment when it was made. Restored, it would give the numbers that follow
to other changes. `home` names the table that took the last revision; the first transaction that finds itself in
another one takes a revision beyond all that the former database can have reached by now: 2^20 for each second of the
clock. `fork_time` says for how long processes may still have leases from the former one.
"""

from alembic import op

revision = "0005"
down_revision = "0004"

# The name counts as well: a database may be looked at under one and renamed to another.
_HERE = "current_database() || '/' || revision.tableoid"

STATEMENTS = (
    "alter table revision add column if not exists home text, add column if not exists fork_time timestamptz",
    f"update revision set home = {_HERE} where home is null",
    "comment on column revision.home is 'Which table took the last revision: another one is a copy of it'",
    "comment on column revision.fork_time is 'When this history parted from the one that it was copied from'",
    f"""
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
        update revision set
            current = case when home = {_HERE} then current + 1
                else greatest(current + 1, (extract(epoch from clock_timestamp()) * 1048576)::bigint) end,
            fork_time = case when home = {_HERE} then fork_time else clock_timestamp() end,
            home = {_HERE},
            stamp = gen_random_uuid()
        returning current, stamp into strict taken, its_stamp;
        update change set revision = taken, stamp = its_stamp
        where transaction = pg_current_xact_id() and revision is null;
        perform pg_notify('gatekey_change', '');
        return taken;
    end
    $$
    """,
    # What finds everything as it should be takes a revision as well, where it is the first in a copy.
    f"""
    create or replace function take_position(
        patience interval, out reached bigint, out its_stamp uuid, out is_after_fork boolean
    )
    language plpgsql set search_path from current as $$
    begin
        if exists (select from revision where home is distinct from {_HERE}) then
            insert into change default values;
        end if;
        perform take_revision();
        select current, stamp, coalesce(clock_timestamp() < fork_time + patience, false)
        into strict reached, its_stamp, is_after_fork
        from revision;
    end
    $$
    """,
)


def upgrade() -> None:
    # Each by itself: the lock on the table is not held while the rest is done.
    with op.get_context().autocommit_block():
        for statement in STATEMENTS:
            op.execute(statement)
