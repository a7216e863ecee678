-- name: audit_head(product_id, tenant_id, caller_tenant_uid, caller_key_uid)^
-- The end of a chain, and what people call the caller's token. Whoever appends holds the lock of the product or the
-- tenant. One row without a number where the chain is empty.
select
    head.sequence, head.hash,
    (
        select display_name from api_key where tenant_uid = :caller_tenant_uid and key_uid = :caller_key_uid
    ) as caller_display_name
from (values (1)) as one (one)
left join lateral (
    select sequence, hash
    from audit_event
    where product_id = :product_id and tenant_id = :tenant_id
    order by sequence desc
    limit 1
) as head on true;

-- name: audit_insert(product_id, tenant_id, sequence, event_time, verb, target, caller, caller_display_name, actor, request_id, before, after, revision, hash)!
-- Inserts one event, in the transaction of the change.
insert into audit_event
    (product_id, tenant_id, sequence, event_time, verb, target, caller, caller_display_name, actor, request_id, before,
    after, revision, hash)
values
    (:product_id, :tenant_id, :sequence, :event_time, :verb, :target, :caller, :caller_display_name, :actor,
    :request_id, :before, :after, :revision, :hash);

-- name: audit_list(product_id, tenant_id, since, until, target, actor, verb, after, end, limit)
-- Some events of a part of a chain, in order. Empty filters match everything.
select
    product_id, tenant_id, sequence, event_time, verb, target, caller, caller_display_name, actor, request_id,
    before::text as before, after::text as after, revision, hash, audit_receipt.wait_ms
from audit_event
left join audit_receipt using (product_id, tenant_id, sequence)
where product_id = :product_id
    and tenant_id = :tenant_id
    and sequence > :after
    and sequence <= :end
    and (:since::timestamptz is null or event_time >= :since)
    and (:until::timestamptz is null or event_time < :until)
    and (:target = '' or target = :target)
    and (:actor = '' or actor = :actor)
    and (:verb = '' or verb = :verb)
order by sequence
limit :limit;

-- name: audit_chains(product_id, tenant_id, only, limit)
-- Some chains from a place on, those of one product or of all, and the newest number of each; from one to the next by
-- the index, however long they are.
with recursive chain (product_id, tenant_id) as (
    (
        select product_id, tenant_id
        from audit_event
        where (product_id, tenant_id) >= (:product_id, :tenant_id)
        order by product_id, tenant_id
        limit 1
    )
    union all
    select following.product_id, following.tenant_id
    from chain
    cross join lateral (
        select product_id, tenant_id
        from audit_event
        where (audit_event.product_id, audit_event.tenant_id) > (chain.product_id, chain.tenant_id)
        order by product_id, tenant_id
        limit 1
    ) as following
    where :only::text is null or chain.product_id = :only
)
select chain.product_id, chain.tenant_id, newest.sequence
from chain
cross join lateral (
    select sequence
    from audit_event
    where audit_event.product_id = chain.product_id and audit_event.tenant_id = chain.tenant_id
    order by sequence desc
    limit 1
) as newest
where :only::text is null or chain.product_id = :only
limit :limit;

-- name: audit_last_before(product_id, tenant_id, target, scan, limit)$
-- The last description of a removed target, among the newest events of its chain.
select before::text
from (
    select sequence, target, before, after
    from audit_event
    where product_id = :product_id and tenant_id = :tenant_id
    order by sequence desc
    limit :scan
) as newest
where target = :target and after is null and before is not null
order by sequence desc
limit :limit;

-- name: receipts_insert(product_ids, tenant_ids, sequences, waits_ms)!
-- Writes one batch of waits. Those that exist already are skipped.
insert into audit_receipt (product_id, tenant_id, sequence, wait_ms)
select product_id, tenant_id, sequence, wait_ms
from unnest(:product_ids::text[], :tenant_ids::text[], :sequences::bigint[], :waits_ms::bigint[])
    as receipt (product_id, tenant_id, sequence, wait_ms)
on conflict do nothing;

-- name: request_begin(caller, request_id, fingerprint)^
-- Claims a request id. Waits for another call with the same id, and returns nothing where it was claimed within the
-- last day.
insert into mutation_request (caller, request_id, fingerprint)
values (:caller, :request_id, :fingerprint)
on conflict (caller, request_id) do update
set fingerprint = excluded.fingerprint, answer = null, create_time = now()
where mutation_request.create_time < now() - interval '24 hours'
returning request_id;

-- name: request_lock(caller, request_id)^
-- The fingerprint and the response of a claimed request id. The row lock makes this transaction write, so its commit
-- waits for the standbys: the claim's own commit may have been cancelled while it waited for them.
select fingerprint, answer
from mutation_request
where caller = :caller and request_id = :request_id
for update;

-- name: request_finish(caller, request_id, answer)!
-- Stores the response for repetitions.
update mutation_request set answer = :answer where caller = :caller and request_id = :request_id;

-- name: request_purge(limit)$
-- Purges one batch of request ids that are older than a day. Returns how many.
with gone as (
    delete from mutation_request
    where ctid = any(array(
        select ctid from mutation_request
        where create_time < now() - interval '24 hours'
        order by create_time
        limit :limit
    ))
    returning 1 as one
)
select count(*) from gone;
