-- name: principal_get(tenant_uid, kind, principal_id)^
-- One member or machine user of a tenant, by kind and id.
select principal_uid, kind, principal_id, role, display_name, create_time, version
from principal
where tenant_uid = :tenant_uid and kind = :kind and principal_id = :principal_id;

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
where tenant_uid = :tenant_uid and principal_uid > :after
order by principal_uid
limit :limit;

-- name: principal_list_by_kind(tenant_uid, kind, after, limit)
-- One page of the people of one kind.
select principal_uid, kind, principal_id, role, display_name, create_time, version
from principal
where tenant_uid = :tenant_uid and kind = :kind and principal_uid > :after
order by principal_uid
limit :limit;

-- name: member_count(tenant_uid)$
-- How many users a tenant has.
select count(*) from principal where tenant_uid = :tenant_uid and kind = 'MEMBER';

-- name: principal_delete(tenant_uid, kind, principal_id)$
-- Removes a principal; its keys and their secrets follow by their foreign keys. Answers its uid.
delete from principal
where tenant_uid = :tenant_uid and kind = :kind and principal_id = :principal_id
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
    select 1 as one from principal where tenant_uid = :tenant_uid and kind = :kind limit :limit
) as counted;

-- name: member_count_with_role(tenant_uid, role)$
-- How many members have a role, to see whether the last owner is about to go.
select count(*) from principal where tenant_uid = :tenant_uid and kind = 'MEMBER' and role = :role;

-- name: principal_count_keys(tenant_uid, principal_uid)$
-- How many keys go with a principal.
select count(*) from api_key where tenant_uid = :tenant_uid and principal_uid = :principal_uid;
