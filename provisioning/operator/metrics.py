"""The operator's own numbers, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from provisioning.operator.kube.client import Client
from provisioning.operator.kube.queue import WorkQueue
from provisioning.operator.store import Store

if TYPE_CHECKING:
    from provisioning.operator.watching import Watching


class Metrics:
    """Every number; `text` gives them in Prometheus' format."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        name = "hearth_operator"
        self.turns = Counter(f"{name}_turns", "Turns taken by servers", registry=registry)
        self.failures = Counter(f"{name}_turns_failed", "Turns that could not be done", registry=registry)
        self.turn_seconds = Histogram(
            f"{name}_turn_seconds", "How long a turn takes", buckets=(0.001, 0.01, 0.1, 1, 10, 60), registry=registry
        )
        self.ready_after = Histogram(
            f"{name}_ready_seconds", "From a change to Ready", buckets=(1, 5, 15, 60, 300, 900), registry=registry
        )
        self.applied = Counter(f"{name}_applied", "Children written, by cause", ["cause"], registry=registry)
        self.applied_at = Gauge(
            f"{name}_applied_timestamp_seconds", "When the last child was written", registry=registry
        )
        self.pruned = Counter(f"{name}_pruned", "Children deleted because nobody wants them", registry=registry)
        self.leads = Gauge(f"{name}_leads", "1 while this operator is the one that acts", registry=registry)

    def text(self) -> bytes:
        """Return all numbers."""
        return generate_latest(self.registry)

    def watch(self, store: Store, queue: WorkQueue, client: Client, watching: Callable[[], Watching | None]) -> None:
        """Show what these hold, as it is when somebody asks."""
        self.registry.register(_Held(store, queue, client, watching))


class _Held(Collector):
    def __init__(self, store: Store, queue: WorkQueue, client: Client, watching: Callable[[], Watching | None]) -> None:
        self._store, self._queue, self._client, self._watching = store, queue, client, watching

    def collect(self) -> Iterator[Metric]:
        """Yield each number."""
        name = "hearth_operator"
        gauges = {
            "servers": ("MatrixServers seen", len(self._store.namespaces())),
            "children": ("Children seen", self._store.count()),
            "queue": ("Servers that wait for their turn", len(self._queue)),
            "working": ("Servers that have their turn", self._queue.working),
            "later": ("Servers that have a turn at a later time", self._queue.later),
        }
        for key, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"{name}_{key}", text, value)
        sent = CounterMetricFamily(f"{name}_requests", "Requests to the API server, by verb", labels=["verb"])
        for verb, count in self._client.sent.items():
            sent.add_metric([verb], count)
        yield sent
        relists = CounterMetricFamily(f"{name}_relists", "Times all of a kind was read", labels=["kind"])
        reopened = CounterMetricFamily(f"{name}_watches_reopened", "Times a watch went on", labels=["kind"])
        watching = self._watching()
        for each in watching.reflectors() if watching else ():
            relists.add_metric([each.kind.name], each.relists)
            reopened.add_metric([each.kind.name], each.reopened)
        yield from (relists, reopened)
