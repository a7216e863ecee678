-- name: key_get(tenant_uid, key_uid)^
-- One key of a tenant with its owner and what may be told of its secrets.
select
    key_uid, display_name, kind, mode, grants::text as grants, create_time, expire_time, disable_time, revoke_time,
    owner_kind, owner_id, hints, create_times, expire_times
from api_key_detail
where tenant_uid = :tenant_uid and key_uid = :key_uid;

-- name: key_list(tenant_uid, after, limit)
-- One page of a tenant's keys, in the order of their creation.
select
    key_uid, display_name, kind, mode, grants::text as grants, create_time, expire_time, disable_time, revoke_time,
    owner_kind, owner_id, hints, create_times, expire_times
from api_key_detail
where tenant_uid = :tenant_uid and key_uid > :after
order by key_uid
limit :limit;

-- name: key_list_by_principal(tenant_uid, principal_uid, after, limit)
-- One page of one owner's keys. A query of its own, so that it always goes by the owner's index.
select
    key_uid, display_name, kind, mode, grants::text as grants, create_time, expire_time, disable_time, revoke_time,
    owner_kind, owner_id, hints, create_times, expire_times
from api_key_detail
where tenant_uid = :tenant_uid and principal_uid = :principal_uid and key_uid > :after
order by key_uid
limit :limit;

-- name: key_insert(tenant_uid, key_uid, principal_uid, display_name, kind, mode, grants, expire_time)!
-- A key without a secret; the secret follows in the same transaction.
insert into api_key (tenant_uid, key_uid, principal_uid, display_name, kind, mode, grants, expire_time)
values (:tenant_uid, :key_uid, :principal_uid, :display_name, :kind, :mode, :grants, :expire_time);

-- name: secret_insert(tenant_uid, key_uid, slot, digest, pepper_version, hint)!
-- The unique index on the digest and the key's two slots refuse what must not be.
insert into secret (tenant_uid, key_uid, slot, digest, pepper_version, hint)
values (:tenant_uid, :key_uid, :slot, :digest, :pepper_version, :hint);

-- name: key_delete(tenant_uid, key_uid)^
-- Removes a key; its secrets follow by their foreign key.
delete from api_key
where tenant_uid = :tenant_uid and key_uid = :key_uid
returning key_uid, principal_uid;
