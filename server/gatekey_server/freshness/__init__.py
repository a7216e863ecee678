"""Freshness: checks are decided from memory, and never from data older than a mutation that has returned.

    Once a mutation has returned, no check that starts afterwards, on any process, is decided from older snapshots.

The long form, with the proof and its assumptions, is docs/freshness.md. This page says who does what::

     process A                         PostgreSQL                          process B
     ---------                         ----------                          ---------
     mutation --- change + event ----> rows
                                       trigger: revision r, until COMMIT
              <-- commit at r --------
                                       notify -------------------------->  ChangePoller wakes
     PropagationBarrier                       <-- "applied n; what since?" -
        waits until                    changes n+1 ... r ----------------->  InvalidationIndex.apply
        A has applied r and                                                  ChangeLog.add
        every row of `process`                                               PrimaryLease.renew(t0)
        says so, or 3.03 s             row of B: "applied r" <------------  next poll
              <-- all have applied r -
     response                          snapshots as of r --------------->  SnapshotSource, where memory has none
                                                                               |
                                                                               | Resolve, Sync: the changes, and
                                                                               v what is left of B's lease
                                                                           client cache

1. A mutation commits with a revision. Triggers note which product, tenant, principal, key or digest each statement
   changed. A deferred trigger takes the next revision under a row lock held until the commit, so revisions have the
   order of commits, without gaps. Number and random stamp together are a position (`core.changes.Position`): the
   stamp tells a history from its restored or failed-over copies. (`store/changes.py`, migration 0003)
2. `ChangePoller` (change_poller.py) asks the database on a connection of its own what changed since the position
   that this process has applied: on each notification, and every 0.75 s without one. The same statement writes down
   in the table `process` what this process has applied.
3. `PrimaryLease` (lease.py, over `core.lease.Lease`) permits decisions from memory for 3 s, counted from `t0`, which
   is read before a poll is sent. It is renewed once the poll's changes are applied. Without a lease nothing is decided,
   from memory or from the database: a former primary might be the one that responds.
4. `InvalidationIndex` (core/invalidation_index.py) holds the revision at which each scope last changed. A cached
   snapshot is current if none of its key, principal, tenant and product changed after the revision that it was read
   at. Nothing is evicted on a change, so a load that arrives late is refused by the same comparison. Where the history
   breaks off, everything is dropped.
5. `SnapshotSource` (snapshot_source.py) returns the snapshots of secrets: from `SnapshotCache` (core/snapshot_cache.py,
   S3-FIFO, bounded in entries and bytes) where they are current, else by one query, which `Loader` (loads.py) shares
   among the requests of one turn of the event loop. A load counts only if it came from the server that renewed the
   lease. Secrets that do not exist are cached apart, so that guesses displace no real key.
6. `PropagationBarrier` (propagation.py) holds a mutation back after its commit until its own process has applied the
   revision and every other row of `process` says the same. It waits 3.03 s at most: by then every lease from before
   the commit is over, also on a machine whose clock is slow by 1 %. A process that died stops no one for longer:
   any other process removes its row once it has been unchanged for as long. Creations do not wait, because no cache
   holds what is new.
7. A client cache follows a process as the process follows the database, with the same index and cache from
   `gatekey.core`. `ChangeLog` (change_log.py) serves it the changes since its position, and the process adds what is
   left of its own lease. So a client's lease never ends later than its server's. `gatekey-wait: everywhere` makes a
   mutation wait 3.03 s, after which clients know it too.
"""
