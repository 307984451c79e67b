"""Numbers that are read from the database when somebody scrapes: each app registers its own from `AppConfig.ready`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from django.db import DatabaseError, connection, transaction
from prometheus_client.core import REGISTRY, GaugeMetricFamily
from prometheus_client.registry import Collector

from observability.metrics import WHEN_ASKED, note

logger = logging.getLogger(__name__)
LIMIT_MS = 2000
"""Milliseconds for one query: a scrape must not weigh on a database that is busy already."""
Rows = Iterable[tuple[Sequence[str], float]]
Read = Callable[[], Rows]


@dataclass(frozen=True)
class Gauge:
    """One number, or one for each of the label values that `read` returns with it."""

    name: str
    text: str
    labels: tuple[str, ...]
    read: Read


class Gauges(Collector):
    """Asks all of them. Where the database does not answer there is no number, rather than a wrong one."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}

    def add(self, gauge: Gauge) -> None:
        """Add one, or put another in the place of the one that has its name."""
        self._gauges[gauge.name] = gauge
        note(gauge.name, "gauge", gauge.labels, gauge.text)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield from ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for gauge in self._gauges.values():
            family = GaugeMetricFamily(gauge.name, gauge.text, labels=gauge.labels)
            try:
                for labels, value in _limited(gauge.read):
                    family.add_metric(labels, value)
            except DatabaseError as error:
                logger.warning("There is no %s to scrape. %s", gauge.name, error)
            yield family


def _limited(read: Read) -> list[tuple[Sequence[str], float]]:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("select set_config('statement_timeout', %s, true)", [str(LIMIT_MS)])
        return list(read())


GAUGES = Gauges()
REGISTRY.register(GAUGES)
WHEN_ASKED.append(GAUGES)


def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Callable[[Read], Read]:
    """Register a function that returns pairs of label values and number, such as `[(["ready"], 3)]`."""

    def register(read: Read) -> Read:
        GAUGES.add(Gauge(name, text, tuple(labels), read))
        return read

    return register
