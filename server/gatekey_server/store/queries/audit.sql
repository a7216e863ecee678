-- name: audit_head(product_id, tenant_id)^
-- The end of a chain; whoever appends holds the lock of the product or the tenant.
select sequence, hash
from audit_event
where product_id = :product_id and tenant_id = :tenant_id
order by sequence desc
limit 1;

-- name: audit_insert(product_id, tenant_id, sequence, event_time, verb, target, caller, actor, request_id, before, after, revision, hash)!
-- One event, in the transaction of what it tells.
insert into audit_event
    (product_id, tenant_id, sequence, event_time, verb, target, caller, actor, request_id, before, after, revision, hash)
values
    (:product_id, :tenant_id, :sequence, :event_time, :verb, :target, :caller, :actor, :request_id, :before, :after,
    :revision, :hash);

-- name: audit_list(product_id, tenant_id, since, until, target, actor, verb, after, limit)
-- One page of a chain, in its order. Empty filters let everything through.
select
    product_id, tenant_id, sequence, event_time, verb, target, caller, actor, request_id, before::text as before,
    after::text as after, revision, hash, audit_receipt.wait_ms
from audit_event
left join audit_receipt using (product_id, tenant_id, sequence)
where product_id = :product_id
    and tenant_id = :tenant_id
    and sequence > :after
    and (:since::timestamptz is null or event_time >= :since)
    and (:until::timestamptz is null or event_time < :until)
    and (:target = '' or target = :target)
    and (:actor = '' or actor = :actor)
    and (:verb = '' or verb = :verb)
order by sequence
limit :limit;

-- name: receipts_insert(product_ids, tenant_ids, sequences, waits_ms)!
-- One batch of waits; what is written twice was written before.
insert into audit_receipt (product_id, tenant_id, sequence, wait_ms)
select product_id, tenant_id, sequence, wait_ms
from unnest(:product_ids::text[], :tenant_ids::text[], :sequences::bigint[], :waits_ms::bigint[])
    as receipt (product_id, tenant_id, sequence, wait_ms)
on conflict do nothing;

-- name: request_begin(caller, request_id, fingerprint)^
-- Claims a request id; waits for another call with the same id, and answers nothing where it was
-- claimed within the last day.
insert into mutation_request (caller, request_id, fingerprint)
values (:caller, :request_id, :fingerprint)
on conflict (caller, request_id) do update
set fingerprint = excluded.fingerprint, answer = null, create_time = now()
where mutation_request.create_time < now() - interval '24 hours'
returning request_id;

-- name: request_lock(caller, request_id)^
-- What a claimed request id stands for. Locked so that this transaction has something to commit, and its
-- commit waits for the standbys: the claim's own may have been given up while it waited for them.
select fingerprint, answer
from mutation_request
where caller = :caller and request_id = :request_id
for update;

-- name: request_finish(caller, request_id, answer)!
-- Keeps the answer for repetitions.
update mutation_request set answer = :answer where caller = :caller and request_id = :request_id;

-- name: request_purge(limit)$
-- Forgets one batch of request ids that are older than a day. Answers how many.
with batch as (
    select caller, request_id from mutation_request
    where create_time < now() - interval '24 hours'
    order by create_time
    limit :limit
),
gone as (
    delete from mutation_request using batch
    where mutation_request.caller = batch.caller and mutation_request.request_id = batch.request_id
    returning 1 as one
)
select count(*) from gone;
