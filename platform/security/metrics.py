"""`hearth_keys_overdue` for Prometheus: read from the database whenever somebody scrapes."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from django.db import DatabaseError
from prometheus_client.core import REGISTRY, GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from security.keyring import report


class KeyCollector(Collector):
    """Counts the keys past their rotation. While the database is away there is no number, rather than a wrong one."""

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield self._family()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = self._family()
        try:
            counts = {"kek": report.overdue_keks().count(), "root": report.overdue_roots().count()}
        except DatabaseError:
            counts = {}
        for kind, count in counts.items():
            family.add_metric([kind], count)
        yield family

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily("hearth_keys_overdue", "Active keys past their rotation.", labels=["kind"])


def register(registry: CollectorRegistry = REGISTRY) -> None:
    """Let a registry ask for the number."""
    registry.register(KeyCollector())


@functools.cache
def register_once() -> None:
    """Let the process's own registry ask."""
    register()
