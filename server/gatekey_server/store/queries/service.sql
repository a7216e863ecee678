-- name: ping()$
-- Whether the database answers.
select 1;

-- name: bootstrap_lock()$
-- One server at a time sets up what every deployment has; held to the end of the transaction.
select pg_advisory_xact_lock(7016996765293437281);

-- name: pepper_list()
-- The fingerprints of the peppers that secrets were sealed under.
select version, fingerprint from pepper order by version;

-- name: pepper_insert(version, fingerprint)!
-- Makes a pepper known.
insert into pepper (version, fingerprint) values (:version, :fingerprint);

-- name: secret_exists(digests)$
-- Whether a secret is stored, whatever has become of its key.
select exists (select 1 from secret where digest = any(:digests));
