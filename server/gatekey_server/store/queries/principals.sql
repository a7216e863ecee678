-- name: principal_get(tenant_uid, kind, principal_id)^
-- One member or machine user of a tenant, by kind and id.
select principal_uid, kind, principal_id, role, display_name, create_time, version
from principal
where tenant_uid = :tenant_uid and kind = :kind and principal_id = :principal_id and remove_time is null;

-- name: principal_insert(tenant_uid, kind, principal_id, role, display_name)^
-- Nothing where the id is taken.
insert into principal (tenant_uid, kind, principal_id, role, display_name)
values (:tenant_uid, :kind, :principal_id, :role, :display_name)
on conflict (tenant_uid, kind, principal_id) do nothing
returning principal_uid, kind, principal_id, role, display_name, create_time, version;

-- name: principal_list(tenant_uid, after, limit)
-- One page of the people, in the order in which they were added.
select principal_uid, kind, principal_id, role, display_name, create_time, version
from principal
where tenant_uid = :tenant_uid and principal_uid > :after and remove_time is null
order by principal_uid
limit :limit;

-- name: principal_list_by_kind(tenant_uid, kind, after, limit)
-- One page of the people of one kind.
select principal_uid, kind, principal_id, role, display_name, create_time, version
from principal
where tenant_uid = :tenant_uid and kind = :kind and principal_uid > :after and remove_time is null
order by principal_uid
limit :limit;

-- name: principal_remove(tenant_uid, principal_uid)!
-- From here on nothing of it counts, and its id is free. Releases that know no remove_time see a member whose role no
-- spec has, and deny its keys.
update principal
set remove_time = now(), kind = 'MEMBER', role = '/removed', principal_id = '/removed/' || principal_uid,
    display_name = '', version = version + 1
where tenant_uid = :tenant_uid and principal_uid = :principal_uid;

-- name: principal_next_removed(but)^
-- A removed principal whose rows are still there to be purged, but none of those that could not be.
select tenant_uid, principal_uid
from principal
where remove_time is not null and principal_uid <> all(:but::bigint[])
order by remove_time
limit 1;

-- name: purge_begin()$
-- For this transaction, the triggers note no deletions: what is purged has not counted since its removal.
select set_config('gatekey.purges_removed', 'on', true);

-- name: principal_purge_keys(tenant_uid, principal_uid, after, limit)$
-- Removes one batch of a removed principal's keys with what is below them. Another server may be at it, too. Answers
-- the last one's uid, from which to go on: from the start, each batch would look at what all before it have left in the
-- index. Null at the end. By an array: joins are planned for many more keys, and would read the whole tables.
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
-- Removes a removed principal itself, once it has no keys. Answers its uid.
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
-- Removes a machine user whose last key has just been deleted, and no other. Answers its uid.
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
-- Changes a principal of a locked tenant. A role counts from the next check on.
update principal
set role = :role, display_name = :display_name, version = version + 1
where tenant_uid = :tenant_uid and principal_uid = :principal_uid
returning principal_uid, kind, principal_id, role, display_name, create_time, version;

-- name: principal_count_up_to(tenant_uid, kind, limit)$
-- How many principals of a kind a tenant has, as far as a limit makes it matter.
select count(*) from (
    select 1 as one
    from principal
    where tenant_uid = :tenant_uid and kind = :kind and remove_time is null
    limit :limit
) as counted;

-- name: member_count_with_role(tenant_uid, role, limit)$
-- How many members have a role, as far as a limit makes it matter, to see whether the last owner is about to go.
select count(*) from (
    select 1 as one from principal
    where tenant_uid = :tenant_uid and kind = 'MEMBER' and role = :role and remove_time is null
    limit :limit
) as counted;

-- name: member_exists(tenant_uid)$
-- Whether a tenant has a member, on whose behalf it could be changed.
select exists (select from principal where tenant_uid = :tenant_uid and kind = 'MEMBER' and remove_time is null);

-- name: principal_count_keys(tenant_uid, principal_uid, limit)$
-- How many keys go with a principal, as far as a limit makes it matter.
select count(*) from (
    select 1 as one from api_key where tenant_uid = :tenant_uid and principal_uid = :principal_uid limit :limit
) as counted;

-- name: principal_key_uids(tenant_uid, principal_uid, limit)
-- The first keys that go with a principal.
select key_uid
from api_key
where tenant_uid = :tenant_uid and principal_uid = :principal_uid
order by key_uid
limit :limit;
