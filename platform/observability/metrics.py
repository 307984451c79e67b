"""What Hearth counts about itself, for Prometheus. Imports no Django: beat counts too.

With `PROMETHEUS_MULTIPROC_DIR` each process writes into files of that folder, and whoever is scraped adds them up.
`PROMETHEUS_PROCESS` names the process: one that is started again goes on in its own files, so that a part that keeps
crashing leaves no heap of them, and its counters don't fall back to zero. The supervisor sets both.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, values
from prometheus_client.core import REGISTRY
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from observability.processes import FOLDER, PROCESS

if os.environ.get(FOLDER) and (_name := os.environ.get(PROCESS)):
    # As the library's page on uWSGI does it; it has no types for it.
    values.ValueClass = cast("Any", values.MultiProcessValue)(lambda: _name)
# Times of creation double the series, and the files of several processes have none.
cast("Any", disable_created_metrics)()


@dataclass(frozen=True)
class Metric:
    """One metric as `docs/metrics.md` lists it. `kind` is Prometheus' word: counter, histogram or gauge."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


CATALOGUE: dict[str, Metric] = {}
"""Every metric by its name on the page."""
WHEN_ASKED: list[Collector] = []
"""What is worked out for each scrape, once for all processes."""


def note(name: str, kind: str, labels: Sequence[str], text: str) -> None:
    """Put a metric on the list."""
    CATALOGUE[name] = Metric(name, kind, tuple(labels), text)


def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
    """Make a counter; on the page its name ends in `_total`."""
    note(f"{name}_total", "counter", labels, text)
    return Counter(name, text, labels)


def histogram(name: str, text: str, labels: Sequence[str] = (), *, buckets: Sequence[float]) -> Histogram:
    """Make a histogram with these upper bounds."""
    note(name, "histogram", labels, text)
    return Histogram(name, text, labels, buckets=buckets)


def page(accept: str) -> tuple[bytes, str]:
    """Return all metrics of all processes, and the content type of their form."""
    registry = REGISTRY
    folder = os.environ.get(FOLDER)
    if folder and Path(folder).is_dir():
        registry = CollectorRegistry()
        cast("Any", MultiProcessCollector)(registry, folder)
        for collector in WHEN_ASKED:
            registry.register(collector)
    encode, form = choose_encoder(accept)
    return encode(registry), form


REQUESTS = counter("hearth_requests", "Answers of the web server.", ["page", "method", "status"])
REQUEST_SECONDS = histogram(
    "hearth_request_seconds",
    "How long an answer took.",
    ["page"],
    buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
TASKS = counter("hearth_tasks", "Celery tasks by what became of them.", ["task", "event"])
CLOCK = counter("hearth_clock_messages", "Messages that beat sent, or could not send.", ["task", "event"])
CLOCK_FAULTS = counter("hearth_clock_faults", "Heartbeats that beat could not write to the database.")
