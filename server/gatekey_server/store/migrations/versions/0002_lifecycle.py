"""The rest of the lives of keys and tenants, the audit log, and calls that are safe to repeat."""

import re

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS = (
    # Versions make etags. Constant defaults: no row is rewritten, and the previous release need not know them.
    """
    alter table tenant
        add column if not exists version bigint not null default 1,
        add column if not exists purge_time timestamptz
    """,
    # What was deleted before there were purges gets its time, too.
    """
    update tenant set purge_time = delete_time + interval '30 days'
    where delete_time is not null and purge_time is null
    """,
    "alter table principal add column if not exists version bigint not null default 1",
    """
    alter table api_key
        add column if not exists version bigint not null default 1,
        add column if not exists description text not null default '',
        add column if not exists labels jsonb not null default '{}',
        add column if not exists revoke_reason text not null default ''
    """,
    """
    create index concurrently if not exists api_key_by_expire_time
        on api_key (expire_time) where expire_time is not null
    """,
    """
    create index concurrently if not exists api_key_by_revoke_time
        on api_key (revoke_time) where revoke_time is not null
    """,
    # A table of its own: uses are written often, and must touch neither the key's row nor its version.
    """
    create table if not exists key_usage (
        tenant_uid bigint not null,
        key_uid uuid not null,
        last_use_time timestamptz not null,
        primary key (tenant_uid, key_uid),
        foreign key (tenant_uid, key_uid) references api_key on delete cascade
    )
    """,
    "create index concurrently if not exists tenant_by_purge_time on tenant (purge_time) where purge_time is not null",
    # New columns come last: the previous release goes on reading the view by its names.
    """
    create or replace view api_key_detail as
    select
        api_key.tenant_uid, api_key.key_uid, api_key.principal_uid, api_key.display_name, api_key.kind,
        api_key.mode, api_key.grants, api_key.create_time, api_key.expire_time, api_key.disable_time,
        api_key.revoke_time, principal.kind as owner_kind, principal.principal_id as owner_id,
        secrets.hints, secrets.create_times, secrets.expire_times,
        api_key.version, api_key.description, api_key.labels, api_key.revoke_reason, key_usage.last_use_time
    from api_key
    left join key_usage on key_usage.tenant_uid = api_key.tenant_uid and key_usage.key_uid = api_key.key_uid
    left join principal
        on principal.tenant_uid = api_key.tenant_uid and principal.principal_uid = api_key.principal_uid
    cross join lateral (
        select
            array_agg(secret.hint order by secret.create_time desc) as hints,
            array_agg(secret.create_time order by secret.create_time desc) as create_times,
            array_agg(secret.expire_time order by secret.create_time desc) as expire_times
        from secret
        where secret.tenant_uid = api_key.tenant_uid and secret.key_uid = api_key.key_uid
    ) as secrets
    """,
    """
    create table if not exists mutation_request (
        caller text not null,
        request_id uuid not null,
        fingerprint bytea not null check (octet_length(fingerprint) = 32),
        answer bytea,
        create_time timestamptz not null default now(),
        primary key (caller, request_id)
    )
    """,
    "create index concurrently if not exists mutation_request_by_time on mutation_request (create_time)",
    # By name and not by foreign key: what happened outlives what it happened to.
    """
    create table if not exists audit_event (
        product_id text not null,
        tenant_id text not null,
        sequence bigint not null check (sequence >= 1),
        event_time timestamptz not null,
        verb text not null,
        target text not null,
        caller text not null,
        actor text not null,
        request_id text not null,
        before jsonb,
        after jsonb,
        hash bytea not null check (octet_length(hash) = 32),
        primary key (product_id, tenant_id, sequence)
    )
    """,
    "create index concurrently if not exists audit_event_by_time on audit_event (event_time)",
    """
    create or replace function refuse_change() returns trigger language plpgsql as $$
    begin
        raise exception 'audit events are never changed' using errcode = 'insufficient_privilege';
    end
    $$
    """,
    """
    create or replace trigger audit_event_append_only before update or delete or truncate on audit_event
    for each statement execute function refuse_change()
    """,
)


def upgrade() -> None:
    # Each by itself: a transaction that locked one table after the other would deadlock with the checks
    # that read them all. A migration that was interrupted is simply run again.
    with op.get_context().autocommit_block():
        for statement in STATEMENTS:
            # One that was interrupted is there and of no use.
            index = re.search(r"create index concurrently if not exists (\w+)", statement)
            if index:
                op.execute(f"drop index concurrently if exists {index[1]}")
            op.execute(statement)
