-- name: ping()$
-- Whether the database responds.
select 1;

-- name: bootstrap_lock()$
-- Locks the bootstrap, so that one server at a time runs it. Held to the end of the transaction.
select pg_advisory_xact_lock(7016996765293437281);

-- name: pepper_list()
-- The fingerprints of the peppers that secrets were sealed under.
select version, fingerprint from pepper order by version;

-- name: pepper_insert(version, fingerprint)!
-- Stores the fingerprint of a pepper.
insert into pepper (version, fingerprint) values (:version, :fingerprint);

-- name: secret_exists(digests)$
-- Whether a secret is stored, whatever the state of its key.
select exists (select 1 from secret where digest = any(:digests));
