-- name: facts_by_digest(known_specs, digests)
-- All that decisions about these secrets depend on, in one round trip. The spec is sent only where
-- the server has not compiled it yet.
select
    secret.digest, secret.expire_time as secret_expire_time,
    api_key.key_uid, api_key.kind, api_key.mode, api_key.grants::text as grants,
    api_key.expire_time, api_key.disable_time, api_key.revoke_time,
    tenant.tenant_id, tenant.suspend_time, tenant.delete_time,
    principal.kind as owner_kind, principal.principal_id as owner_id, principal.role as owner_role,
    product.spec_digest,
    case when product.spec_digest = any(:known_specs) then null else product.spec::text end as spec
from secret
join api_key using (tenant_uid, key_uid)
join tenant using (tenant_uid)
join product using (product_id)
left join principal
    on principal.tenant_uid = api_key.tenant_uid and principal.principal_uid = api_key.principal_uid
where secret.digest = any(:digests);

