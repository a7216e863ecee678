-- name: principal_get(tenant_uid, kind, principal_id)^
-- One member or machine user of a tenant, by kind and id.
select principal_uid, kind, principal_id, role, display_name, create_time, version
from principal
where tenant_uid = :tenant_uid and kind = :kind and principal_id = :principal_id and remove_time is null;

-- name: principal_insert(tenant_uid, kind, principal_id, role, display_name)^
-- Inserts a principal. Returns nothing where the id is taken.
insert into principal (tenant_uid, kind, principal_id, role, display_name)
values (:tenant_uid, :kind, :principal_id, :role, :display_name)
on conflict (tenant_uid, kind, principal_id) do nothing
returning principal_uid, kind, principal_id, role, display_name, create_time, version;

-- name: principal_list(tenant_uid, after, limit)
-- One page of the principals, in the order in which they were added.
select principal_uid, kind, principal_id, role, display_name, create_time, version
from principal
where tenant_uid = :tenant_uid and principal_uid > :after and remove_time is null
order by principal_uid
limit :limit;

-- name: principal_list_by_kind(tenant_uid, kind, after, limit)
-- One page of the principals of one kind.
select principal_uid, kind, principal_id, role, display_name, create_time, version
from principal
where tenant_uid = :tenant_uid and kind = :kind and principal_uid > :after and remove_time is null
order by principal_uid
limit :limit;

-- name: principal_remove(tenant_uid, principal_uid)!
-- Marks a principal as removed. None of its keys work from then on, and its id is free. Releases without remove_time
-- see a member whose role no spec has, and deny its keys.
update principal
set remove_time = now(), kind = 'MEMBER', role = '/removed', principal_id = '/removed/' || principal_uid,
    display_name = '', version = version + 1
where tenant_uid = :tenant_uid and principal_uid = :principal_uid;

-- name: principal_next_removed(but)^
-- A removed principal whose rows are still to be purged, except those that could not be purged.
select tenant_uid, principal_uid
from principal
where remove_time is not null and principal_uid <> all(:but::bigint[])
order by remove_time
limit 1;

-- name: purge_begin()$
-- For this transaction, the triggers note no deletions: what is purged has not counted since its removal.
select set_config('gatekey.purges_removed', 'on', true);

-- name: principal_purge_keys(tenant_uid, principal_uid, after, limit)$
-- Deletes one batch of a removed principal's keys with all that belongs to them. Another server may do so, too. Returns
-- the last key's uid, where the next batch starts: from the beginning, each batch would read the dead index entries of
-- all before it. Null at the end. By an array: joins are planned for many more keys, and would read the whole tables.
with batch as (
    select array(
        select key_uid
        from api_key
        where tenant_uid = :tenant_uid
            and principal_uid = :principal_uid
            and key_uid > :after
            and exists (
                select from principal
                where principal.tenant_uid = :tenant_uid
                    and principal.principal_uid = :principal_uid
                    and remove_time is not null
            )
        order by key_uid
        limit :limit
        for update skip locked
    ) as key_uids
),
secrets as (
    delete from secret where tenant_uid = :tenant_uid and key_uid = any((select key_uids from batch)::uuid[])
),
uses as (
    delete from key_usage where tenant_uid = :tenant_uid and key_uid = any((select key_uids from batch)::uuid[])
),
gone as (
    delete from api_key where tenant_uid = :tenant_uid and key_uid = any((select key_uids from batch)::uuid[])
)
select key_uids[cardinality(key_uids)] from batch;

-- name: principal_purge(tenant_uid, principal_uid)$
-- Deletes the row of a removed principal, once it has no keys. Returns its uid.
delete from principal
where tenant_uid = :tenant_uid
    and principal_uid = :principal_uid
    and remove_time is not null
    and not exists (
        select 1 from api_key
        where api_key.tenant_uid = principal.tenant_uid and api_key.principal_uid = principal.principal_uid
    )
returning principal_uid;

-- name: principal_delete_if_keyless(tenant_uid, principal_uid)$
-- Deletes a machine user whose last key has just been deleted, and no other. Returns its uid.
delete from principal
where tenant_uid = :tenant_uid
    and principal_uid = :principal_uid
    and kind = 'MACHINE_USER'
    and not exists (
        select 1 from api_key
        where api_key.tenant_uid = principal.tenant_uid and api_key.principal_uid = principal.principal_uid
    )
returning principal_uid;

-- name: principal_update(tenant_uid, principal_uid, role, display_name)^
-- Changes a principal of a locked tenant. A new role applies from the next check on.
update principal
set role = :role, display_name = :display_name, version = version + 1
where tenant_uid = :tenant_uid and principal_uid = :principal_uid
returning principal_uid, kind, principal_id, role, display_name, create_time, version;

-- name: principal_count_up_to(tenant_uid, kind, limit)$
-- How many principals of a kind a tenant has, up to a limit.
select count(*) from (
    select 1 as one
    from principal
    where tenant_uid = :tenant_uid and kind = :kind and remove_time is null
    limit :limit
) as counted;

-- name: member_count_with_role(tenant_uid, role, limit)$
-- How many members have a role, up to a limit, to see whether the last owner is about to be removed.
select count(*) from (
    select 1 as one from principal
    where tenant_uid = :tenant_uid and kind = 'MEMBER' and role = :role and remove_time is null
    limit :limit
) as counted;

-- name: member_exists(tenant_uid)$
-- Whether a tenant has a member, on whose behalf it could be changed.
select exists (select from principal where tenant_uid = :tenant_uid and kind = 'MEMBER' and remove_time is null);

-- name: principal_count_keys(tenant_uid, principal_uid, limit)$
-- How many keys a principal has, up to a limit.
select count(*) from (
    select 1 as one from api_key where tenant_uid = :tenant_uid and principal_uid = :principal_uid limit :limit
) as counted;

-- name: principal_key_uids(tenant_uid, principal_uid, limit)
-- The first keys of a principal.
select key_uid
from api_key
where tenant_uid = :tenant_uid and principal_uid = :principal_uid
order by key_uid
limit :limit;
