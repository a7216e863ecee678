-- name: product_get(product_id)^
-- One product, by id.
select product_id, spec::text as spec, spec_digest, spec_version, built_in, create_time, update_time
from product
where product_id = :product_id and delete_time is null;

-- name: product_lock_shared(product_id)^
-- The product of a mutation inside it. Its spec cannot change until the mutation ends.
select product_id, spec::text as spec, spec_digest, spec_version, built_in, create_time, update_time
from product
where product_id = :product_id and delete_time is null
for share;

-- name: product_lock(product_id)^
-- The product, for a change of the product itself.
select product_id, spec::text as spec, spec_digest, spec_version, built_in, create_time, update_time
from product
where product_id = :product_id and delete_time is null
for update;

-- name: product_list(after, limit)
-- One page, by id.
select product_id, spec::text as spec, spec_digest, spec_version, built_in, create_time, update_time
from product
where product_id > :after and delete_time is null
order by product_id
limit :limit;

-- name: product_insert(product_id, spec, spec_digest, spec_version, built_in)^
-- Nothing where the id is taken.
insert into product (product_id, spec, spec_digest, spec_version, built_in)
values (:product_id, :spec, :spec_digest, :spec_version, :built_in)
on conflict (product_id) do nothing
returning product_id, spec::text as spec, spec_digest, spec_version, built_in, create_time, update_time;

-- name: product_update_spec(spec, spec_digest, spec_version, product_id)^
-- Replaces the spec of a locked product.
update product
set spec = :spec, spec_digest = :spec_digest, spec_version = :spec_version, update_time = now()
where product_id = :product_id
returning product_id, spec::text as spec, spec_digest, spec_version, built_in, create_time, update_time;

-- name: product_delete(product_id)!
-- Fails while the product has tenants.
delete from product where product_id = :product_id;

-- name: product_mark_deleted(product_id, spec, spec_digest)!
-- Marks a locked product as deleted. None of its keys work from then on. Its spec becomes one that gives nothing, for
-- releases without delete_time.
update product
set delete_time = clock_timestamp(), spec = :spec, spec_digest = :spec_digest
where product_id = :product_id;

-- name: product_next_deleted(but)$
-- A deleted product whose rows are still there to be purged, but none of those that could not be.
select product_id
from product
where delete_time is not null and product_id <> all(:but::text[])
order by delete_time
limit 1;

-- name: product_purge(product_id)!
-- Removes a deleted product itself, once it has no tenants.
delete from product
where product_id = :product_id
    and delete_time is not null
    and (
        select tenant_uid
        from tenant
        where tenant.product_id = :product_id and tenant_uid > 0
        order by tenant.product_id, tenant_uid
        limit 1
    ) is null;

-- name: prefix_delete_by_product(product_id)!
-- Frees the prefixes of a product that is deleted, or whose spec is replaced.
delete from secret_prefix where product_id = :product_id;

-- name: prefix_insert(prefix, product_id, kind)^
-- Assigns a prefix. Returns nothing where another product, or another kind of key, has it.
insert into secret_prefix (prefix, product_id, kind)
values (:prefix, :product_id, :kind)
on conflict (prefix) do nothing
returning prefix;

-- name: prefix_list_of_others(prefixes, product_id)
-- The prefixes that other products have, among some.
select prefix from secret_prefix where prefix = any(:prefixes) and product_id <> :product_id;
