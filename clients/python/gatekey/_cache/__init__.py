"""The client cache: checks that are decided here, under the promise that servers give.

The promise is: a revoked key is denied at the latest 3.03 seconds after the call that revoked it has committed, however
long this client is cut off, stopped or blocked. `docs/freshness.md`, "Client caches", has the proof.

The client follows a server as a server follows the database, by three calls of `CacheService`:

- `Resolve`, for keys that a check could not be decided for: returns what their secrets stand for (a **snapshot** each),
  and the **revision** at which that was read.
- `Sync`, every 0.75 s: returns which scopes (keys, principals, tenants, products) changed after the last one, and how
  long the server's own **lease** still lasts. The client reads its clock before it asks, applies the changes, and may
  then decide until that reading plus the rest of the lease. So its lease never outlasts the server's, and a slow
  response makes it shorter, not longer.
- `ReportUses`, every 10 s: tells which keys were allowed something.

A check is decided here if there is a lease, the key's snapshot is known, and none of its scopes has changed at a later
revision than the snapshot was verified at. In every other case the server decides, and the key is resolved meanwhile.
What is on its way is not kept if the history ended meanwhile (a failover, a restored backup, another token), or there
was no lease for a while. Expiry is judged by the time that has passed since the snapshot was asked for, because the
times of day of two machines may differ.

    a check   →  lookup.LocalCache.recall    lease → snapshot → index → decide; or None: ask the server
                     ↑ apply, learn
    a thread  →  sync.CacheSync.work         what to call and when: renew the lease, resolve keys, report uses
    or a task        ↓ Call   ↑ response
                 runner                      makes the calls, and does nothing else

`lookup` and `sync` do no I/O and read no clock but `core.clock`, so tests drive them without a server. `codec` has all
that depends on protobuf, `snapshot` the values, `options` what users choose. The lease, the index, the store of
snapshots and `decide` are those of the server: `gatekey.core`. A forked process starts over, with nothing known.
"""
