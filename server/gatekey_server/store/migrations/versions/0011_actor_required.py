"""Service tokens whose changes must name an actor. The previous release does not look at it, and makes none."""

from alembic import op

revision = "0011"
down_revision = "0010"

STATEMENTS = (
    "alter table api_key add column if not exists actor_required boolean not null default false",
    "comment on column api_key.actor_required is 'Of service tokens: changes below a tenant must name an actor'",
    """
    create or replace view api_key_detail as
    select
        api_key.tenant_uid, api_key.key_uid, api_key.principal_uid, api_key.display_name, api_key.kind,
        api_key.mode, api_key.grants, api_key.create_time, api_key.expire_time, api_key.disable_time,
        api_key.revoke_time, principal.kind as owner_kind, principal.principal_id as owner_id,
        secrets.hints, secrets.create_times, secrets.expire_times,
        api_key.version, api_key.description, api_key.labels, api_key.revoke_reason, key_usage.last_use_time,
        principal.remove_time as owner_remove_time,
        api_key.creator_actor, api_key.creator_caller, api_key.creator_caller_display_name,
        api_key.actor_required
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
            op.execute(statement)
