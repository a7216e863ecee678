-- name: tenant_get(product_id, tenant_id)^
-- One tenant, by name, deleted or not.
select tenant_uid, product_id, tenant_id, display_name, create_time, suspend_time, delete_time, purge_time, version
from tenant
where product_id = :product_id and tenant_id = :tenant_id;

-- name: tenant_lock(product_id, tenant_id)^
-- The one lock that every mutation inside a tenant takes first: they queue here and cannot deadlock.
select tenant_uid, product_id, tenant_id, display_name, create_time, suspend_time, delete_time, purge_time, version
from tenant
where product_id = :product_id and tenant_id = :tenant_id
for no key update;

-- name: tenant_list(product_id, after, show_deleted, limit)
-- One page, in the order of creation.
select tenant_uid, product_id, tenant_id, display_name, create_time, suspend_time, delete_time, purge_time, version
from tenant
where product_id = :product_id and tenant_uid > :after and (:show_deleted or delete_time is null)
order by tenant_uid
limit :limit;

-- name: tenant_insert(product_id, tenant_id, display_name)^
-- Nothing where the id is taken, also by a deleted tenant.
insert into tenant (product_id, tenant_id, display_name)
values (:product_id, :tenant_id, :display_name)
on conflict (product_id, tenant_id) do nothing
returning tenant_uid, product_id, tenant_id, display_name, create_time, suspend_time, delete_time, purge_time, version;

-- name: tenant_update(tenant_uid, display_name)^
-- Changes what people may change of a locked tenant.
update tenant
set display_name = :display_name, version = version + 1
where tenant_uid = :tenant_uid
returning tenant_uid, product_id, tenant_id, display_name, create_time, suspend_time, delete_time, purge_time, version;

-- name: tenant_suspend(tenant_uid)^
-- From here on every check of the tenant's keys is denied, until it is resumed.
update tenant
set suspend_time = now(), version = version + 1
where tenant_uid = :tenant_uid
returning tenant_uid, product_id, tenant_id, display_name, create_time, suspend_time, delete_time, purge_time, version;

-- name: tenant_resume(tenant_uid)^
-- Ends a suspension.
update tenant
set suspend_time = null, version = version + 1
where tenant_uid = :tenant_uid
returning tenant_uid, product_id, tenant_id, display_name, create_time, suspend_time, delete_time, purge_time, version;

-- name: tenant_mark_deleted(tenant_uid, retention)^
-- From here on every check of the tenant's keys is denied; it can be undeleted for the retention period.
update tenant
set delete_time = now(), purge_time = now() + :retention::interval, version = version + 1
where tenant_uid = :tenant_uid
returning tenant_uid, product_id, tenant_id, display_name, create_time, suspend_time, delete_time, purge_time, version;

-- name: tenant_undelete(tenant_uid)^
-- Takes a deletion back, as long as no purge can have begun.
update tenant
set delete_time = null, purge_time = null, version = version + 1
where tenant_uid = :tenant_uid and purge_time > clock_timestamp()
returning tenant_uid, product_id, tenant_id, display_name, create_time, suspend_time, delete_time, purge_time, version;

-- name: tenant_mark_all_deleted(product_id)!
-- The same for all tenants of a product.
update tenant
set delete_time = now(), purge_time = now(), version = version + 1
where product_id = :product_id and delete_time is null;

-- name: tenant_count(product_id)$
-- How many tenants, deleted ones included, stand in the way of the product's deletion.
select count(*) from tenant where product_id = :product_id;

-- name: tenant_purge_keys(tenant_uid, limit)$
-- Removes one batch of a deleted tenant's keys, secrets with them, and not by the foreign key, which
-- would do it key by key. Answers how many.
with batch as (
    select tenant_uid, key_uid from api_key where tenant_uid = :tenant_uid order by key_uid limit :limit
),
secrets as (
    delete from secret using batch
    where secret.tenant_uid = batch.tenant_uid and secret.key_uid = batch.key_uid
),
gone as (
    delete from api_key using batch
    where api_key.tenant_uid = batch.tenant_uid and api_key.key_uid = batch.key_uid
    returning 1
)
select count(*) from gone;

-- name: tenant_purge_principals(tenant_uid, limit)$
-- Removes one batch of a deleted tenant's principals, once its keys are gone. Answers how many.
with batch as (
    select tenant_uid, principal_uid from principal where tenant_uid = :tenant_uid order by principal_uid limit :limit
),
gone as (
    delete from principal using batch
    where principal.tenant_uid = batch.tenant_uid and principal.principal_uid = batch.principal_uid
    returning 1
)
select count(*) from gone;

-- name: tenant_purge(tenant_uid)!
-- Removes a deleted tenant itself, once nothing is below it.
delete from tenant where tenant_uid = :tenant_uid and delete_time is not null;

-- name: tenant_next_deleted(product_id)^
-- A deleted tenant of the product that is still there to be purged.
select tenant_uid, product_id, tenant_id, display_name, create_time, suspend_time, delete_time, purge_time, version
from tenant
where product_id = :product_id and delete_time is not null
order by tenant_uid
limit 1;

-- name: tenant_next_due()^
-- A deleted tenant whose retention period is over.
select tenant_uid, product_id, tenant_id, display_name, create_time, suspend_time, delete_time, purge_time, version
from tenant
where purge_time <= now()
order by purge_time
limit 1;

-- name: tenant_count_contents(tenant_uid)^
-- What a tenant holds, for whoever is about to delete it.
select
    (select count(*) from principal where tenant_uid = :tenant_uid and kind = 'MEMBER') as members,
    (select count(*) from principal where tenant_uid = :tenant_uid and kind = 'MACHINE_USER') as machine_users,
    (select count(*) from api_key where tenant_uid = :tenant_uid) as api_keys;

-- name: product_count_contents(product_id)^
-- What all tenants of a product hold, for whoever is about to delete the product.
select
    (select count(*) from tenant where product_id = :product_id) as tenants,
    (
        select count(*) from principal join tenant using (tenant_uid)
        where product_id = :product_id and kind = 'MEMBER'
    ) as members,
    (
        select count(*) from principal join tenant using (tenant_uid)
        where product_id = :product_id and kind = 'MACHINE_USER'
    ) as machine_users,
    (select count(*) from api_key join tenant using (tenant_uid) where product_id = :product_id) as api_keys;
