"""Who made a key; the digests of secrets that are gone; names of callers in audit events; which keys count."""

import re

from alembic import op

revision = "0007"
down_revision = "0006"

STATEMENTS = (
    # Texts and no references: who made a key is told for as long as the key is there.
    """
    alter table api_key
        add column if not exists creator_actor text not null default '',
        add column if not exists creator_caller text not null default '',
        add column if not exists creator_caller_display_name text not null default ''
    """,
    "alter table audit_event add column if not exists caller_display_name text",
    "comment on column audit_event.caller_display_name is 'Null in events that are older than this column'",
    # Keys that may work: a limit counts no others.
    """
    create index concurrently if not exists api_key_living on api_key (tenant_uid, principal_uid, expire_time)
        where revoke_time is null
    """,
    # Apart from `secret`: no check reads it. By name and not by foreign key, for it outlives what it is about.
    """
    create table if not exists past_secret (
        digest bytea primary key check (octet_length(digest) = 32),
        pepper_version smallint not null,
        product_id text not null,
        tenant_id text not null,
        key_uid uuid not null,
        hint text not null,
        create_time timestamptz not null,
        expire_time timestamptz,
        end_time timestamptz not null default clock_timestamp()
    )
    """,
    "comment on table past_secret is 'Secrets that are gone, for a while, to tell whose a leaked one was'",
    "create index concurrently if not exists past_secret_by_end_time on past_secret (end_time)",
    # Whoever removes a secret: a rotation, a cascade, a purge, or SQL run by hand. What goes together with its
    # tenant has no name any more.
    """
    create or replace function keep_past_secrets() returns trigger
    language plpgsql set search_path from current as $$
    begin
        insert into past_secret (digest, pepper_version, product_id, tenant_id, key_uid, hint, create_time, expire_time)
        select digest, pepper_version, product_id, tenant_id, key_uid, hint, old_rows.create_time, expire_time
        from old_rows join tenant using (tenant_uid)
        on conflict (digest) do update
        set key_uid = excluded.key_uid, product_id = excluded.product_id, tenant_id = excluded.tenant_id,
            create_time = excluded.create_time, expire_time = excluded.expire_time, end_time = excluded.end_time;
        return null;
    end
    $$
    """,
    """
    create or replace trigger keep_past_secrets after delete on secret referencing old table as old_rows
    for each statement execute function keep_past_secrets()
    """,
    """
    create or replace view api_key_detail as
    select
        api_key.tenant_uid, api_key.key_uid, api_key.principal_uid, api_key.display_name, api_key.kind,
        api_key.mode, api_key.grants, api_key.create_time, api_key.expire_time, api_key.disable_time,
        api_key.revoke_time, principal.kind as owner_kind, principal.principal_id as owner_id,
        secrets.hints, secrets.create_times, secrets.expire_times,
        api_key.version, api_key.description, api_key.labels, api_key.revoke_reason, key_usage.last_use_time,
        principal.remove_time as owner_remove_time,
        api_key.creator_actor, api_key.creator_caller, api_key.creator_caller_display_name
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
)


def upgrade() -> None:
    # Each by itself, as in 0002.
    with op.get_context().autocommit_block():
        for statement in STATEMENTS:
            index = re.search(r"create index concurrently if not exists (\w+)", statement)
            if index:
                op.execute(f"drop index concurrently if exists {index[1]}")
            op.execute(statement)
