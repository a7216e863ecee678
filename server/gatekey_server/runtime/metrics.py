"""The metrics of a process, in the format of Prometheus.

Serving a request updates no metric: the numbers are collected from their sources at each scrape.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gatekey.core import clock
from gatekey.core.invalidation_index import InvalidationIndex
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gatekey_server.freshness.change_poller import ChangePoller
from gatekey_server.freshness.lease import PrimaryLease
from gatekey_server.freshness.propagation import WAIT_BUCKETS_S, PropagationBarrier
from gatekey_server.freshness.snapshot_source import SnapshotSource
from gatekey_server.runtime.variables import Address


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of the numbers."""

    snapshots: SnapshotSource
    index: InvalidationIndex
    lease: PrimaryLease
    poller: ChangePoller
    barrier: PropagationBarrier


def serve(address: Address, sources: Sources) -> str:
    """Serve the metrics over HTTP, in a thread of its own. Returns HOST:PORT. Raises `OSError`."""
    registry = CollectorRegistry()
    registry.register(_Metrics(sources))
    server, _ = start_http_server(address.port, address.host, registry)
    return str(Address(address.host, server.server_port))


class _Metrics(Collector):
    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        yield from self._cache()
        yield from self._freshness()
        yield self._receipt_waits()

    def _cache(self) -> Iterator[Metric]:
        snapshots, counts = self._sources.snapshots, self._sources.snapshots.counts
        lookups = CounterMetricFamily(
            "gatekey_cache_lookups", "Lookups of snapshots, by where they came from", labels=["result"]
        )
        lookups.add_metric(["hit"], counts.hits)
        lookups.add_metric(["miss"], counts.misses - counts.without_lease)
        lookups.add_metric(["no_lease"], counts.without_lease)
        yield lookups
        yield CounterMetricFamily("gatekey_snapshot_loads", "Queries for snapshots", value=counts.loads)
        yield GaugeMetricFamily("gatekey_cache_entries", "Secrets with a cached snapshot", value=snapshots.entries)
        yield GaugeMetricFamily(
            "gatekey_cache_bytes", "Memory of the cached snapshots, by an estimate", value=snapshots.weight
        )

    def _freshness(self) -> Iterator[Metric]:
        sources, now = self._sources, clock.now()
        applied = sources.index.applied.revision
        has_lease = now < sources.lease.until
        yield GaugeMetricFamily("gatekey_applied_revision", "The last revision that was applied", value=applied)
        yield GaugeMetricFamily(
            "gatekey_revision_lag",
            "How many revisions the newest snapshot that was read is ahead of the last applied one",
            value=max(0, sources.index.newest_loaded - applied),
        )
        yield GaugeMetricFamily(
            "gatekey_lease_remaining_seconds",
            "Seconds for which checks may be decided from memory",
            value=max(0.0, sources.lease.until - now),
        )
        yield GaugeMetricFamily(
            "gatekey_change_poll_age_seconds",
            "Since the last poll that succeeded was sent",
            value=now - sources.poller.polled_at,
        )
        yield CounterMetricFamily(
            "gatekey_change_connections", "Connections made for polling", value=sources.poller.connections
        )
        yield CounterMetricFamily("gatekey_cache_resets", "Times the cache was dropped", value=sources.index.resets)
        mode = GaugeMetricFamily(
            "gatekey_mode", "Mode in which checks are decided: 1 for the current one", labels=["mode"]
        )
        mode.add_metric(["cached"], float(has_lease))
        mode.add_metric(["unavailable"], float(not has_lease))
        yield mode

    def _receipt_waits(self) -> Metric:
        barrier = self._sources.barrier
        total, buckets = 0, []
        for bound, count in zip((*WAIT_BUCKETS_S, "+Inf"), barrier.bucket_counts, strict=True):
            total += count
            buckets.append((str(bound), float(total)))
        waits = HistogramMetricFamily(
            "gatekey_receipt_wait_seconds",
            "How long mutations waited until no process could decide from older snapshots",
        )
        waits.add_metric([], buckets, sum_value=barrier.seconds)
        return waits
