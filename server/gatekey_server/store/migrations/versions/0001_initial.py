"""Products, tenants, principals, keys and secrets."""

from alembic import op

revision = "0001"
down_revision = None

STATEMENTS = (
    """
    create table pepper (
        version smallint primary key check (version >= 1),
        fingerprint bytea not null check (octet_length(fingerprint) = 16)
    )
    """,
    "comment on table pepper is 'Which peppers the digests were made with; the peppers are kept elsewhere'",
    """
    create table product (
        product_id text primary key,
        spec jsonb not null,
        spec_digest bytea not null check (octet_length(spec_digest) = 32),
        spec_version bigint not null,
        built_in boolean not null,
        create_time timestamptz not null default now(),
        update_time timestamptz not null default now()
    )
    """,
    """
    create table secret_prefix (
        prefix text primary key,
        product_id text not null references product on delete cascade,
        kind text not null check (kind in ('SECRET', 'PUBLISHABLE')),
        unique (product_id, kind)
    )
    """,
    # A product goes only once its tenants are gone: nothing may remove millions of rows by one statement.
    """
    create table tenant (
        tenant_uid bigint generated always as identity primary key,
        product_id text not null references product on delete restrict,
        tenant_id text not null,
        display_name text not null,
        create_time timestamptz not null default now(),
        suspend_time timestamptz,
        delete_time timestamptz,
        unique (product_id, tenant_id)
    )
    """,
    "create index tenant_by_product on tenant (product_id, tenant_uid)",
    """
    create table principal (
        tenant_uid bigint not null references tenant on delete cascade,
        principal_uid bigint generated always as identity,
        kind text not null check (kind in ('MEMBER', 'MACHINE_USER')),
        principal_id text not null,
        role text,
        display_name text not null,
        create_time timestamptz not null default now(),
        primary key (tenant_uid, principal_uid),
        unique (tenant_uid, kind, principal_id),
        check ((kind = 'MEMBER') = (role is not null))
    )
    """,
    """
    create table api_key (
        tenant_uid bigint not null references tenant on delete cascade,
        key_uid uuid not null,
        principal_uid bigint,
        display_name text not null,
        kind text not null check (kind in ('SECRET', 'PUBLISHABLE')),
        mode text check (mode in ('ALL', 'READ_ONLY', 'RESTRICTED')),
        grants jsonb,
        create_time timestamptz not null default now(),
        expire_time timestamptz,
        disable_time timestamptz,
        revoke_time timestamptz,
        primary key (tenant_uid, key_uid),
        foreign key (tenant_uid, principal_uid) references principal on delete cascade,
        check ((kind = 'SECRET') = (principal_uid is not null)),
        check ((kind = 'SECRET') = (mode is not null)),
        check ((mode = 'RESTRICTED') is true = (grants is not null))
    )
    """,
    "create index api_key_by_principal on api_key (tenant_uid, principal_uid, key_uid)",
    # Two slots: a key has at most two secrets, whatever the code does.
    """
    create table secret (
        tenant_uid bigint not null,
        key_uid uuid not null,
        slot smallint not null check (slot in (1, 2)),
        digest bytea not null unique check (octet_length(digest) = 32),
        pepper_version smallint not null references pepper,
        hint text not null,
        create_time timestamptz not null default now(),
        expire_time timestamptz,
        primary key (tenant_uid, key_uid, slot),
        foreign key (tenant_uid, key_uid) references api_key on delete cascade
    )
    """,
    # A key as it is read: with its owner's id, and with what may be told of its secrets, the newest first.
    """
    create view api_key_detail as
    select
        api_key.tenant_uid, api_key.key_uid, api_key.principal_uid, api_key.display_name, api_key.kind,
        api_key.mode, api_key.grants, api_key.create_time, api_key.expire_time, api_key.disable_time,
        api_key.revoke_time, principal.kind as owner_kind, principal.principal_id as owner_id,
        secrets.hints, secrets.create_times, secrets.expire_times
    from api_key
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
    for statement in STATEMENTS:
        op.execute(statement)
