-- name: key_get(tenant_uid, key_uid)^
-- One key of a tenant with its owner and the properties of its secrets that are not secret.
select
    key_uid, display_name, kind, mode, grants::text as grants, create_time, expire_time, disable_time, revoke_time,
    owner_kind, owner_id, hints, create_times, expire_times, description, labels::text as labels, revoke_reason,
    version, last_use_time, creator_actor, creator_caller, creator_caller_display_name, actor_required
from api_key_detail
where tenant_uid = :tenant_uid and key_uid = :key_uid and owner_remove_time is null;

-- name: key_list(tenant_uid, after, scan, limit)
-- Some of a tenant's keys, in the order of their creation. Only the next `scan` keys are read, because any number of
-- them may belong to removed owners.
select
    key_uid, display_name, kind, mode, grants::text as grants, create_time, expire_time, disable_time, revoke_time,
    owner_kind, owner_id, hints, create_times, expire_times, description, labels::text as labels, revoke_reason,
    version, last_use_time, creator_actor, creator_caller, creator_caller_display_name, actor_required
from api_key_detail
where tenant_uid = :tenant_uid
    and key_uid = any(array(
        select key_uid
        from (
            select key_uid, principal_uid
            from api_key
            where tenant_uid = :tenant_uid and key_uid > :after
            order by key_uid
            limit :scan
        ) as next
        where not exists (
            select from principal
            where principal.tenant_uid = :tenant_uid
                and principal.principal_uid = next.principal_uid
                and principal.remove_time is not null
        )
        order by key_uid
        limit :limit
    ))
order by key_uid;

-- name: key_scan_end(tenant_uid, after, scan)$
-- The last of the next `scan` keys of a tenant; null where there are fewer.
select key_uid
from api_key
where tenant_uid = :tenant_uid and key_uid > :after
order by key_uid
offset :scan::bigint - 1
limit 1;

-- name: key_list_by_principal(tenant_uid, principal_uid, after, limit)
-- Some of one owner's keys. A separate query, so that it always uses the owner's index.
select
    key_uid, display_name, kind, mode, grants::text as grants, create_time, expire_time, disable_time, revoke_time,
    owner_kind, owner_id, hints, create_times, expire_times, description, labels::text as labels, revoke_reason,
    version, last_use_time, creator_actor, creator_caller, creator_caller_display_name, actor_required
from api_key_detail
where tenant_uid = :tenant_uid and principal_uid = :principal_uid and key_uid > :after
order by key_uid
limit :limit;

-- name: key_list_of_tenant(tenant_uid, after, limit)
-- Some of the secret keys of the tenant itself, also by the owner's index.
select
    key_uid, display_name, kind, mode, grants::text as grants, create_time, expire_time, disable_time, revoke_time,
    owner_kind, owner_id, hints, create_times, expire_times, description, labels::text as labels, revoke_reason,
    version, last_use_time, creator_actor, creator_caller, creator_caller_display_name, actor_required
from api_key_detail
where tenant_uid = :tenant_uid and principal_uid is null and kind = 'SECRET' and key_uid > :after
order by key_uid
limit :limit;

-- name: key_insert(tenant_uid, key_uid, principal_uid, display_name, description, labels, kind, mode, grants, expire_time, creator_actor, creator_caller, creator_caller_display_name, actor_required)!
-- Inserts a key without a secret. The secret follows in the same transaction.
insert into api_key
    (tenant_uid, key_uid, principal_uid, display_name, description, labels, kind, mode, grants, expire_time,
    creator_actor, creator_caller, creator_caller_display_name, actor_required)
values
    (:tenant_uid, :key_uid, :principal_uid, :display_name, :description, :labels, :kind, :mode, :grants, :expire_time,
    :creator_actor, :creator_caller, :creator_caller_display_name, :actor_required);

-- name: secret_insert(tenant_uid, key_uid, slot, digest, pepper_version, hint)!
-- Inserts a secret. The unique index on the digest and the key's two slots refuse invalid ones. Not now(), which is the
-- start of the transaction: of two rotations, the one that waited may have started first.
insert into secret (tenant_uid, key_uid, slot, digest, pepper_version, hint, create_time)
values (:tenant_uid, :key_uid, :slot, :digest, :pepper_version, :hint, clock_timestamp());

-- name: key_delete(tenant_uid, key_uid)^
-- Deletes a key. Its secrets follow by their foreign key.
delete from api_key
where tenant_uid = :tenant_uid and key_uid = :key_uid
returning key_uid, principal_uid;

-- name: key_update(tenant_uid, key_uid, display_name, description, labels, mode, grants, expire_time)!
-- Changes the settings of a key of a locked tenant.
update api_key
set display_name = :display_name, description = :description, labels = :labels, mode = :mode, grants = :grants,
    expire_time = :expire_time, version = version + 1
where tenant_uid = :tenant_uid and key_uid = :key_uid;

-- name: key_disable(tenant_uid, key_uid)^
-- Disables a key. Returns what changed, so that the key need not be read again.
update api_key set disable_time = now(), version = version + 1
where tenant_uid = :tenant_uid and key_uid = :key_uid
returning disable_time, version;

-- name: key_enable(tenant_uid, key_uid)^
-- Enables a key. Returns what changed.
update api_key set disable_time = null, version = version + 1
where tenant_uid = :tenant_uid and key_uid = :key_uid
returning version;

-- name: key_revoke(tenant_uid, key_uid, reason)^
-- Revokes a key for good. Returns what changed, so that the key need not be read again.
update api_key set revoke_time = now(), revoke_reason = :reason, version = version + 1
where tenant_uid = :tenant_uid and key_uid = :key_uid
returning revoke_time, version;

-- name: key_count_up_to(tenant_uid, limit)$
-- How many keys a tenant has, up to a limit, without those of removed principals: all keys between two of these, by
-- uid, count, and so do those without a principal.
with removed as (
    select principal_uid from principal where tenant_uid = :tenant_uid and remove_time is not null
),
bounds as (
    select lag(principal_uid, 1, 0) over (order by principal_uid) as low, principal_uid as high from removed
    union all
    select coalesce(max(principal_uid), 0), 9223372036854775807 from removed
)
select count(*) from (
    (
        select 1 as one
        from bounds
        cross join lateral (
            select 1 from api_key
            where tenant_uid = :tenant_uid and principal_uid > bounds.low and principal_uid < bounds.high
            limit :limit
        ) as between_removed
        limit :limit
    )
    union all
    (select 1 from api_key where tenant_uid = :tenant_uid and principal_uid is null limit :limit)
) as counted;

-- name: key_count_living(tenant_uid, now, limit)$
-- How many keys of a tenant are neither revoked nor expired, up to a limit, without those of removed principals, as in
-- `key_count_up_to`.
with removed as (
    select principal_uid from principal where tenant_uid = :tenant_uid and remove_time is not null
),
bounds as (
    select lag(principal_uid, 1, 0) over (order by principal_uid) as low, principal_uid as high from removed
    union all
    select coalesce(max(principal_uid), 0), 9223372036854775807 from removed
)
select count(*) from (
    (
        select 1 as one
        from bounds
        cross join lateral (
            (
                select 1 from api_key
                where tenant_uid = :tenant_uid and principal_uid > bounds.low and principal_uid < bounds.high
                    and revoke_time is null and expire_time is null
                limit :limit
            )
            union all
            (
                select 1 from api_key
                where tenant_uid = :tenant_uid and principal_uid > bounds.low and principal_uid < bounds.high
                    and revoke_time is null and expire_time > :now
                limit :limit
            )
        ) as between_removed
        limit :limit
    )
    union all
    (
        select 1 from api_key
        where tenant_uid = :tenant_uid and principal_uid is null and revoke_time is null and expire_time is null
        limit :limit
    )
    union all
    (
        select 1 from api_key
        where tenant_uid = :tenant_uid and principal_uid is null and revoke_time is null and expire_time > :now
        limit :limit
    )
) as counted;

-- name: key_display_name(tenant_uid, key_uid)$
-- The display name of a key.
select display_name from api_key where tenant_uid = :tenant_uid and key_uid = :key_uid;

-- name: key_touch(tenant_uid, key_uid)!
-- Increments the version of a key whose secrets have changed.
update api_key set version = version + 1 where tenant_uid = :tenant_uid and key_uid = :key_uid;

-- name: secret_retire(tenant_uid, key_uid, slot, grace)!
-- Lets a secret expire after the grace, and never later than it would have.
update secret
set expire_time = least(coalesce(expire_time, 'infinity'), now() + :grace::interval)
where tenant_uid = :tenant_uid and key_uid = :key_uid and slot = :slot;

-- name: secret_slots(tenant_uid, key_uid)
-- The secrets of a locked key, the newest first.
select slot, create_time, expire_time
from secret
where tenant_uid = :tenant_uid and key_uid = :key_uid
order by create_time desc, slot desc;

-- name: secret_delete(tenant_uid, key_uid, slot)!
-- Deletes a secret, to free its slot for a new one.
delete from secret where tenant_uid = :tenant_uid and key_uid = :key_uid and slot = :slot;

-- name: secret_locate(digests)^
-- The key that a secret belongs or belonged to, in whatever state.
select
    tenant.product_id, tenant.tenant_id, secret.key_uid, secret.hint, secret.create_time, secret.expire_time,
    principal.remove_time as end_time
from secret
join tenant using (tenant_uid)
join api_key on api_key.tenant_uid = secret.tenant_uid and api_key.key_uid = secret.key_uid
left join principal on principal.tenant_uid = api_key.tenant_uid and principal.principal_uid = api_key.principal_uid
where secret.digest = any(:digests)
union all
select product_id, tenant_id, key_uid, hint, create_time, expire_time, end_time
from past_secret
where digest = any(:digests)
order by end_time desc
limit 1;

-- name: past_secret_purge(retention, limit)$
-- Purges one batch of secrets that ended longer ago than the retention. Returns how many.
with gone as (
    delete from past_secret
    where digest = any(array(
        select digest from past_secret
        where end_time < now() - :retention::interval
        order by end_time
        limit :limit
    ))
    returning 1 as one
)
select count(*) from gone;

-- name: key_list_ended(retention, limit)
-- Keys that expired or were revoked longer ago than the retention.
(
    select tenant.product_id, tenant.tenant_id, api_key.key_uid
    from api_key join tenant using (tenant_uid)
    where api_key.expire_time < now() - :retention::interval
    order by api_key.expire_time
    limit :limit
)
union
(
    select tenant.product_id, tenant.tenant_id, api_key.key_uid
    from api_key join tenant using (tenant_uid)
    where api_key.revoke_time < now() - :retention::interval
    order by api_key.revoke_time
    limit :limit
);

-- name: usage_find(product_ids, tenant_ids, key_uids)
-- The uids of the used keys that exist, by the ids in their resource names.
select tenant.tenant_uid, api_key.key_uid
from unnest(:product_ids::text[], :tenant_ids::text[], :key_uids::uuid[]) as used (product_id, tenant_id, key_uid)
join tenant on tenant.product_id = used.product_id and tenant.tenant_id = used.tenant_id
join api_key on api_key.tenant_uid = tenant.tenant_uid and api_key.key_uid = used.key_uid;

-- name: usage_update(tenant_uids, key_uids, times)
-- Updates one batch of uses of keys that were used before. Returns those that were written: rows that another
-- transaction writes or deletes are skipped, not waited for.
with known as (
    select key_usage.ctid as place, used.last_use_time
    from unnest(:tenant_uids::bigint[], :key_uids::uuid[], :times::timestamptz[])
        as used (tenant_uid, key_uid, last_use_time)
    join key_usage on key_usage.tenant_uid = used.tenant_uid and key_usage.key_uid = used.key_uid
    for update of key_usage skip locked
)
update key_usage
set last_use_time = greatest(key_usage.last_use_time, known.last_use_time)
from known
where key_usage.ctid = known.place
returning key_usage.tenant_uid, key_usage.key_uid;

-- name: usage_insert(tenant_uids, key_uids, times)!
-- Writes one batch of uses of any keys, in the order of the keys so that two batches cannot deadlock. Keys that are
-- deleted, or being deleted, are left out: a row whose key is deleted before the commit would be refused.
insert into key_usage (tenant_uid, key_uid, last_use_time)
select used.tenant_uid, used.key_uid, used.last_use_time
from unnest(:tenant_uids::bigint[], :key_uids::uuid[], :times::timestamptz[])
    as used (tenant_uid, key_uid, last_use_time)
join api_key on api_key.tenant_uid = used.tenant_uid and api_key.key_uid = used.key_uid
order by used.tenant_uid, used.key_uid
for key share of api_key skip locked
on conflict (tenant_uid, key_uid) do update
set last_use_time = greatest(key_usage.last_use_time, excluded.last_use_time);
