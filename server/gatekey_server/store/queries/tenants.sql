-- name: tenant_get(product_id, tenant_id)^
-- One tenant, by name, deleted or not, of a product that is not.
select tenant_uid, product_id, tenant_id, display_name, create_time, suspend_time, delete_time, purge_time, version
from tenant
where product_id = :product_id
    and tenant_id = :tenant_id
    and exists (select from product where product.product_id = tenant.product_id and product.delete_time is null);

-- name: tenant_lock(product_id, tenant_id)^
-- The one lock that every mutation inside a tenant takes first: they queue here and cannot deadlock.
select tenant_uid, product_id, tenant_id, display_name, create_time, suspend_time, delete_time, purge_time, version
from tenant
where product_id = :product_id and tenant_id = :tenant_id
for no key update;

-- name: tenant_list(product_id, after, limit)
-- Some of a product's tenants, in the order of creation, deleted ones included: there may be any number of these.
select tenant_uid, product_id, tenant_id, display_name, create_time, suspend_time, delete_time, purge_time, version
from tenant
where product_id = :product_id and tenant_uid > :after
order by tenant_uid
limit :limit;

-- name: tenant_insert(product_id, tenant_id, display_name)^
-- Inserts a tenant. Returns nothing where the id is taken, also by a deleted tenant.
insert into tenant (product_id, tenant_id, display_name)
values (:product_id, :tenant_id, :display_name)
on conflict (product_id, tenant_id) do nothing
returning tenant_uid, product_id, tenant_id, display_name, create_time, suspend_time, delete_time, purge_time, version;

-- name: tenant_update(tenant_uid, display_name)^
-- Changes the display name of a locked tenant.
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
-- Undeletes a tenant, as long as no purge can have begun.
update tenant
set delete_time = null, purge_time = null, version = version + 1
where tenant_uid = :tenant_uid and purge_time > clock_timestamp()
returning tenant_uid, product_id, tenant_id, display_name, create_time, suspend_time, delete_time, purge_time, version;

-- name: tenant_count(product_id, limit)$
-- How many tenants, deleted ones included, stand in the way of the product's deletion, as far as a limit.
select count(*) from (select 1 as one from tenant where product_id = :product_id limit :limit) as counted;

-- name: tenant_purge_keys(tenant_uid, after, limit)$
-- Removes one batch of a deleted tenant's keys, secrets with them, and not by the foreign key, which
-- would do it key by key. Returns the last one's uid, where the next batch starts; null at the end.
with batch as (
    select array(
        select key_uid from api_key where tenant_uid = :tenant_uid and key_uid > :after order by key_uid limit :limit
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

-- name: tenant_purge_principals(tenant_uid, after, limit)$
-- Removes one batch of a deleted tenant's principals, once its keys are deleted. Returns the last one's uid; null
-- at the end.
with batch as (
    select array(
        select principal_uid
        from principal
        where tenant_uid = :tenant_uid and principal_uid > :after
        order by principal_uid
        limit :limit
    ) as principal_uids
),
gone as (
    delete from principal
    where tenant_uid = :tenant_uid and principal_uid = any((select principal_uids from batch)::bigint[])
)
select principal_uids[cardinality(principal_uids)] from batch;

-- name: tenant_purge(tenant_uid)!
-- Removes a deleted tenant itself, or one of a deleted product, once nothing is below it.
delete from tenant
where tenant_uid = :tenant_uid
    and (
        delete_time is not null
        or exists (
            select from product where product.product_id = tenant.product_id and product.delete_time is not null
        )
    );

-- name: tenant_next_of_deleted_product(product_id)^
-- A tenant of a deleted product that is still there to be purged, deleted or not.
select tenant_uid, product_id, tenant_id, display_name, create_time, suspend_time, delete_time, purge_time, version
from tenant
where product_id = :product_id
    and tenant_uid > 0
    and exists (select from product where product.product_id = :product_id and product.delete_time is not null)
order by product_id, tenant_uid
limit 1;

-- name: tenant_next_due(but)^
-- A deleted tenant whose retention is over, except those that could not be removed.
select tenant_uid, product_id, tenant_id, display_name, create_time, suspend_time, delete_time, purge_time, version
from tenant
where purge_time <= now() and tenant_uid <> all(:but::bigint[])
order by purge_time
limit 1;

-- name: product_count_contents(product_id, limit)^
-- What all tenants of a product hold, as far as a limit, for whoever is about to delete the product.
with tenants as (
    select tenant_uid from tenant where product_id = :product_id order by tenant_uid limit :limit
),
people as (
    select tenant_uid, principal_uid, kind
    from tenants join principal using (tenant_uid)
    where remove_time is null
    limit :limit
)
select
    (select count(*) from tenants) as tenants,
    (select count(*) from people where kind = 'MEMBER') as members,
    (select count(*) from people where kind = 'MACHINE_USER') as machine_users,
    (
        select count(*) from (
            (select 1 as one from people join api_key using (tenant_uid, principal_uid) limit :limit)
            union all
            (
                select 1 from tenants join api_key using (tenant_uid)
                where api_key.principal_uid is null
                limit :limit
            )
        ) as keys
    ) as api_keys;
