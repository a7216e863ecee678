-- name: product_get(product_id)^
-- One product, by id.
select product_id, spec::text as spec, spec_digest, spec_version, built_in, create_time, update_time
from product
where product_id = :product_id;

-- name: product_lock_shared(product_id)^
-- The product that a mutation below it goes by: its spec cannot change until the mutation is over.
select product_id, spec::text as spec, spec_digest, spec_version, built_in, create_time, update_time
from product
where product_id = :product_id
for share;

-- name: product_lock(product_id)^
-- The product that is itself about to change.
select product_id, spec::text as spec, spec_digest, spec_version, built_in, create_time, update_time
from product
where product_id = :product_id
for update;

-- name: product_list(after, limit)
-- One page, by id.
select product_id, spec::text as spec, spec_digest, spec_version, built_in, create_time, update_time
from product
where product_id > :after
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

-- name: prefix_delete_by_product(product_id)!
-- Frees the prefixes of a product whose spec is being replaced.
delete from secret_prefix where product_id = :product_id;

-- name: prefix_insert(prefix, product_id, kind)^
-- Nothing where another product, or another kind of key, has the prefix.
insert into secret_prefix (prefix, product_id, kind)
values (:prefix, :product_id, :kind)
on conflict (prefix) do nothing
returning prefix;

-- name: member_count_by_role(product_id)
-- How many members of living tenants have each role, to see which a new spec would leave without one.
select principal.role, count(*) as members
from principal
join tenant using (tenant_uid)
where tenant.product_id = :product_id and tenant.delete_time is null and principal.kind = 'MEMBER'
group by principal.role
order by principal.role;

-- name: machine_user_count(product_id)$
-- How many machine users the living tenants have, for a spec that would do away with them.
select count(*)
from principal
join tenant using (tenant_uid)
where tenant.product_id = :product_id and tenant.delete_time is null and principal.kind = 'MACHINE_USER';

-- name: key_count_by_permissions(product_id)
-- How many unrevoked keys of living tenants share each kind, mode and set of grants.
select api_key.kind, api_key.mode, api_key.grants::text as grants, count(*) as keys
from api_key
join tenant using (tenant_uid)
where tenant.product_id = :product_id and tenant.delete_time is null and api_key.revoke_time is null
group by api_key.kind, api_key.mode, api_key.grants;
