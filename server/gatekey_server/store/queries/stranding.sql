-- name: tenant_list_with_many_keys(tenant_uids, few)
-- Which of some tenants have more than a few keys, and are looked at by themselves.
select listed.tenant_uid
from unnest(:tenant_uids::bigint[]) as listed (tenant_uid)
cross join lateral (
    select 1 as one from api_key where api_key.tenant_uid = listed.tenant_uid order by key_uid offset :few limit 1
) as one_more;

-- name: tenant_list_with_many_principals(tenant_uids, few)
-- The same by members and machine users.
select listed.tenant_uid
from unnest(:tenant_uids::bigint[]) as listed (tenant_uid)
cross join lateral (
    select 1 as one
    from principal
    where principal.tenant_uid = listed.tenant_uid
    order by principal_uid
    offset :few
    limit 1
) as one_more;

-- name: principal_scan_end(tenant_uid, after, scan)$
-- The last of the next `scan` principals of a tenant; null where there are not as many.
select principal_uid
from principal
where tenant_uid = :tenant_uid and principal_uid > :after
order by principal_uid
offset :scan::bigint - 1
limit 1;

-- name: key_groups(tenant_uids, after, last)
-- How many of the unrevoked keys of some tenants, between two places, share each kind, kind of owner, mode and set of
-- grants, and the first of them. By the digest of the grants, which may be long.
select
    kind, owner_kind, mode, grants_digest, count(*) as keys,
    (array_agg(tenant_uid order by tenant_uid, key_uid))[1 : 5] as tenant_uids,
    (array_agg(key_uid order by tenant_uid, key_uid))[1 : 5] as key_uids
from (
    select
        tenant_uid, key_uid, kind, mode, principal_uid,
        sha256(convert_to(grants::text, 'UTF8')) as grants_digest,
        (
            select principal.kind
            from principal
            where principal.tenant_uid = api_key.tenant_uid
                and principal.principal_uid = api_key.principal_uid
                and principal.remove_time is null
        ) as owner_kind
    from api_key
    where tenant_uid = any(:tenant_uids::bigint[]) and key_uid > :after and key_uid <= :last and revoke_time is null
) as given
where principal_uid is null or owner_kind is not null
group by kind, owner_kind, mode, grants_digest;

-- name: key_groups_of(tenant_uids, key_uids)
-- The same of some keys. By a lateral, so that each is always found by its key.
select
    kind, owner_kind, mode, grants_digest, count(*) as keys,
    (array_agg(tenant_uid order by tenant_uid, key_uid))[1 : 5] as tenant_uids,
    (array_agg(key_uid order by tenant_uid, key_uid))[1 : 5] as key_uids
from (
    select
        given.tenant_uid, given.key_uid, kind, mode, principal_uid,
        sha256(convert_to(grants::text, 'UTF8')) as grants_digest,
        (
            select principal.kind
            from principal
            where principal.tenant_uid = given.tenant_uid
                and principal.principal_uid = given.principal_uid
                and principal.remove_time is null
        ) as owner_kind
    from unnest(:tenant_uids::bigint[], :key_uids::uuid[]) as listed (tenant_uid, key_uid)
    cross join lateral (
        select tenant_uid, key_uid, kind, mode, principal_uid, grants
        from api_key
        where api_key.tenant_uid = listed.tenant_uid
            and api_key.key_uid = listed.key_uid
            and api_key.revoke_time is null
        limit 1
    ) as given
) as given
where principal_uid is null or owner_kind is not null
group by kind, owner_kind, mode, grants_digest;

-- name: key_grants(tenant_uids, key_uids)
-- What some keys are given.
select api_key.tenant_uid, api_key.key_uid, api_key.grants
from unnest(:tenant_uids::bigint[], :key_uids::uuid[]) as listed (tenant_uid, key_uid)
cross join lateral (
    select tenant_uid, key_uid, grants::text as grants
    from api_key
    where api_key.tenant_uid = listed.tenant_uid and api_key.key_uid = listed.key_uid
    limit 1
) as api_key;

-- name: principal_groups(tenant_uids, after, last, roles, machine_users)
-- How many members of some tenants, between two places, have each of some roles, and how many machine users there are;
-- and the first of them.
select
    kind, role, count(*) as principals,
    (array_agg(tenant_uid order by tenant_uid, principal_uid))[1 : 5] as tenant_uids,
    (array_agg(principal_id order by tenant_uid, principal_uid))[1 : 5] as principal_ids
from principal
where tenant_uid = any(:tenant_uids::bigint[])
    and principal_uid > :after
    and principal_uid <= :last
    and remove_time is null
    and case kind when 'MEMBER' then role = any(:roles::text[]) else :machine_users::boolean end
group by kind, role;

-- name: principal_groups_of(tenant_uids, principal_uids, roles, machine_users)
-- The same of some principals.
select
    kind, role, count(*) as principals,
    (array_agg(tenant_uid order by tenant_uid, principal_uid))[1 : 5] as tenant_uids,
    (array_agg(principal_id order by tenant_uid, principal_uid))[1 : 5] as principal_ids
from (
    select found.tenant_uid, found.principal_uid, principal_id, kind, role
    from unnest(:tenant_uids::bigint[], :principal_uids::bigint[]) as listed (tenant_uid, principal_uid)
    cross join lateral (
        select tenant_uid, principal_uid, principal_id, kind, role
        from principal
        where principal.tenant_uid = listed.tenant_uid
            and principal.principal_uid = listed.principal_uid
            and principal.remove_time is null
        limit 1
    ) as found
) as found
where case kind when 'MEMBER' then role = any(:roles::text[]) else :machine_users::boolean end
group by kind, role;

-- name: tenant_list_losing_owners(tenant_uids, before, after)
-- Which of some tenants have members of one role and none of another, when the other one is to own tenants.
select listed.tenant_uid
from unnest(:tenant_uids::bigint[]) as listed (tenant_uid)
cross join lateral (
    select 1 as one
    from principal
    where principal.tenant_uid = listed.tenant_uid and kind = 'MEMBER' and role = :before and remove_time is null
    limit 1
) as owner_before
left join lateral (
    select 1 as one
    from principal
    where principal.tenant_uid = listed.tenant_uid and kind = 'MEMBER' and role = :after and remove_time is null
    limit 1
) as owner_after on true
where owner_after.one is null
order by listed.tenant_uid;

-- name: position_read()^
-- Where the history is now, for whoever reads what it holds and then what has changed since.
select current, stamp from revision;

-- name: product_changes(product_id, revision, stamp, limit)
-- The next changes after a position, of all products; those of other products without a tenant. One row where there
-- is none. `continuous` is false where the position is not in this database's history, or no longer.
with known as (
    select 1 as one from revision where current = :revision and stamp = :stamp
    union all
    select 1 as one from change where change.revision = :revision and change.stamp = :stamp
    limit 1
)
select
    revision.current, revision.stamp, exists (select from known) as continuous,
    changed.change_uid, changed.product_id, changed.tenant_uid, changed.principal_uid, changed.key_uid, tenant.tenant_id
from revision
left join (
    select change_uid, revision, product_id, tenant_uid, principal_uid, key_uid
    from change
    where change.revision > :revision
    order by change.revision
    limit :limit
) as changed on true
left join lateral (
    select tenant_id
    from tenant
    where tenant.tenant_uid = changed.tenant_uid and tenant.product_id = :product_id and delete_time is null
    limit 1
) as tenant on true;
