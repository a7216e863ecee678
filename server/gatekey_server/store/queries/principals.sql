-- name: principal_get(tenant_uid, kind, principal_id)^
-- One member or machine user of a tenant, by kind and id.
select principal_uid, kind, principal_id, role, display_name, create_time
from principal
where tenant_uid = :tenant_uid and kind = :kind and principal_id = :principal_id;

-- name: principal_insert(tenant_uid, kind, principal_id, role, display_name)^
-- Nothing where the id is taken.
insert into principal (tenant_uid, kind, principal_id, role, display_name)
values (:tenant_uid, :kind, :principal_id, :role, :display_name)
on conflict (tenant_uid, kind, principal_id) do nothing
returning principal_uid, kind, principal_id, role, display_name, create_time;

-- name: principal_list(tenant_uid, after, limit)
-- One page of the people, in the order in which they were added.
select principal_uid, kind, principal_id, role, display_name, create_time
from principal
where tenant_uid = :tenant_uid and principal_uid > :after
order by principal_uid
limit :limit;

-- name: principal_list_by_kind(tenant_uid, kind, after, limit)
-- One page of the people of one kind.
select principal_uid, kind, principal_id, role, display_name, create_time
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
-- Removes a machine user whose last key has just been deleted, and no other.
delete from principal
where tenant_uid = :tenant_uid
    and principal_uid = :principal_uid
    and kind = 'MACHINE_USER'
    and not exists (
        select 1 from api_key
        where api_key.tenant_uid = principal.tenant_uid and api_key.principal_uid = principal.principal_uid
    )
returning principal_uid;
