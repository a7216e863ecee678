-- name: process_register(process_uid, applied, stamp)!
-- Registers a process, so that mutations wait for it. Committed before its first lease. Its applied revision counts
-- only where it is in this database's history, as in `changes_poll`.
insert into process (process_uid, applied_revision)
select :process_uid, case when exists (
    select from revision where current = :applied and stamp = :stamp
    union all
    select from change where change.revision = :applied and change.stamp = :stamp
) then :applied else -1 end;

-- name: process_unregister(process_uid)!
-- Unregisters a process that decides nothing from its cache any more.
delete from process where process_uid = :process_uid;

-- name: process_remove(process_uid, last_poll)!
-- Removes a process that has not polled since it was last read.
delete from process where process_uid = :process_uid and last_poll = :last_poll;

-- name: process_list()
-- Every process that may decide from its cache with its applied revision, and the start time of this server.
select process_uid, applied_revision, last_poll, pg_postmaster_start_time() as server from process;

-- name: changes_poll(process_uid, applied, stamp, limit)
-- Renews a lease: acknowledges the applied position and returns the changes since, as of one snapshot.
-- A write, so that a former primary that cannot commit renews nothing. One row without a change where
-- there is none; `continuous` is false where the change that the process applied last is not in this
-- database's history, or no longer. Then nothing is acknowledged: another change may get that number yet.
with known as (
    select 1 as one from revision where current = :applied and stamp = :stamp
    union all
    select 1 as one from change where change.revision = :applied and change.stamp = :stamp
    limit 1
),
renewed as (
    update process
    set applied_revision = case when exists (select from known) then :applied else -1 end,
        last_poll = gen_random_uuid()
    where process_uid = :process_uid
    returning process_uid
)
select
    revision.current, revision.stamp,
    exists (select from renewed) as registered,
    exists (select from known) as continuous,
    change.revision as change_revision, change.product_id, change.tenant_uid, change.principal_uid, change.key_uid,
    change.digest, change.stamp as change_stamp, revision.scope_key, pg_postmaster_start_time() as server,
    tenant.product_id as tenant_product
from revision
left join change on change.revision > :applied and exists (select from known)
left join tenant on tenant.tenant_uid = change.tenant_uid
order by change.revision
limit :limit;

-- name: position_take(patience)^
-- The position that this transaction's changes get; the last one where it has made none, and whether there may be
-- leases from a history that this one was copied from. Holds the revision's lock to the end of the transaction: not
-- much but the commit should follow.
select reached, its_stamp, is_after_fork from take_position(:patience);

-- name: changes_purge(keep, limit)$
-- Purges one batch of changes that are further back than the processes need. Returns how many.
with gone as (
    delete from change
    where ctid = any(array(
        select ctid from change
        where revision < (select current - :keep::bigint from revision)
        order by revision
        limit :limit
    ))
    returning 1 as one
)
select count(*) from gone;
