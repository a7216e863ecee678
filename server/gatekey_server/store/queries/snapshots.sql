-- name: snapshots_by_digest(known_specs, digests)
-- All data that decisions about these secrets depend on, and its revision: one statement sees one snapshot. One row
-- without a digest where no secret is found, or only secrets of removed principals or deleted products. The spec is sent
-- only where the server has not compiled it yet. The start time of PostgreSQL tells which server responded, which may be
-- a former primary. Times are compared and bounded here, because the driver cannot read every one.
select
    revision.current as revision, revision.stamp, pg_postmaster_start_time() as server,
    secret.digest, tenant.product_id,
    api_key.key_uid, api_key.kind, api_key.mode, api_key.grants::text as grants,
    case when least(api_key.expire_time, secret.expire_time) is not null then
        greatest('1970-01-01T00:00:00Z', least(api_key.expire_time, secret.expire_time, '9000-01-01T00:00:00Z'))
    end as expire_time,
    api_key.disable_time is not null as is_disabled, api_key.revoke_time is not null as is_revoked,
    tenant.tenant_id, tenant.suspend_time is not null as is_suspended, tenant.delete_time is not null as is_deleted,
    principal.kind as owner_kind, principal.principal_id as owner_id, principal.role as owner_role,
    secret.tenant_uid, api_key.principal_uid, key_usage.last_use_time is not null as was_used, api_key.actor_required, product.spec_digest,
    case when product.spec_digest = any(:known_specs) then null else product.spec::text end as spec
from revision
left join (
    secret
    join api_key on api_key.tenant_uid = secret.tenant_uid and api_key.key_uid = secret.key_uid
    join tenant on tenant.tenant_uid = secret.tenant_uid
    join product on product.product_id = tenant.product_id
    left join principal
        on principal.tenant_uid = api_key.tenant_uid and principal.principal_uid = api_key.principal_uid
    left join key_usage on key_usage.tenant_uid = secret.tenant_uid and key_usage.key_uid = secret.key_uid
) on secret.digest = any(:digests) and principal.remove_time is null and product.delete_time is null;

-- name: product_by_digest(digest)
-- The product of a secret whose other data cannot be read.
select tenant.product_id
from secret
join tenant using (tenant_uid)
where secret.digest = :digest;

-- name: digests_by_key(product_id, tenant_id, key_uid)
-- The digests of a key, for a holder who presents no secret. The one that expires last comes first.
select secret.digest
from tenant
join secret using (tenant_uid)
join api_key on api_key.tenant_uid = secret.tenant_uid and api_key.key_uid = secret.key_uid
left join principal on principal.tenant_uid = api_key.tenant_uid and principal.principal_uid = api_key.principal_uid
where tenant.product_id = :product_id
    and tenant.tenant_id = :tenant_id
    and secret.key_uid = :key_uid
    and principal.remove_time is null
order by secret.expire_time desc nulls first, secret.slot;
