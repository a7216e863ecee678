"""Members and machine users that are removed at once, and whose keys are purged in steps afterwards.

The previous release knows no `remove_time`. What it reads of a removed principal is a member with an id that nobody
can ask for and a role that no spec has, so that it denies every check of its keys.
"""

import re

from alembic import op

revision = "0006"
down_revision = "0005"

STATEMENTS = (
    "alter table principal add column if not exists remove_time timestamptz",
    "comment on column principal.remove_time is 'Since when nothing of it counts any more; its rows are being purged'",
    """
    create index concurrently if not exists principal_by_remove_time
        on principal (remove_time) where remove_time is not null
    """,
    # For the last owner, and for the keys of removed principals among those of a tenant.
    """
    create index concurrently if not exists principal_by_role on principal (tenant_uid, role) where kind = 'MEMBER'
    """,
    """
    create index concurrently if not exists principal_removed
        on principal (tenant_uid, principal_uid) where remove_time is not null
    """,
    """
    create or replace view api_key_detail as
    select
        api_key.tenant_uid, api_key.key_uid, api_key.principal_uid, api_key.display_name, api_key.kind,
        api_key.mode, api_key.grants, api_key.create_time, api_key.expire_time, api_key.disable_time,
        api_key.revoke_time, principal.kind as owner_kind, principal.principal_id as owner_id,
        secrets.hints, secrets.create_times, secrets.expire_times,
        api_key.version, api_key.description, api_key.labels, api_key.revoke_reason, key_usage.last_use_time,
        principal.remove_time as owner_remove_time
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
    # Rows of removed principals decide nothing: their purge would only empty caches, batch by batch.
    *(
        f"""
        create or replace trigger record_delete after delete on {table} referencing old table as old_rows
        for each statement when (current_setting('gatekey.purges_removed', true) is distinct from 'on')
        execute function record_{table}_change()
        """
        for table in ("principal", "api_key", "secret")
    ),
)


def upgrade() -> None:
    # Each by itself, as in 0002.
    with op.get_context().autocommit_block():
        for statement in STATEMENTS:
            index = re.search(r"create index concurrently if not exists (\w+)", statement)
            if index:
                op.execute(f"drop index concurrently if exists {index[1]}")
            op.execute(statement)
