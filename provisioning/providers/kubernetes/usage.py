"""What servers use: processors and memory from metrics.k8s.io, volumes from a Prometheus, for a whole region at once.

A region has both or neither. What nobody measures is unknown and never zero, and no server waits for it.
https://github.com/kubernetes/metrics/blob/master/pkg/apis/metrics/v1beta1/types.go
https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import httpx
from kubernetes.utils.quantity import parse_quantity

from provisioning.providers.base import ProviderError
from provisioning.providers.kubernetes.client import Client
from provisioning.providers.kubernetes.databases import Databases
from provisioning.providers.kubernetes.objects import SERVER

PODS = "/apis/metrics.k8s.io/v1beta1/pods"
# A claim may be told of by two kubelets while its pod moves.
QUERY = (
    "sum by (namespace) (max by (namespace, persistentvolumeclaim) "
    '(kubelet_volume_stats_used_bytes{namespace=~"hearth-.+"}))'
)
SIZES_EVERY_S = 600.0
EVERY_S = 50.0
"""Seconds for which figures are kept: metrics-server has new ones each 15 s, and a sample is taken each minute."""
_number: Callable[[str], Decimal] = parse_quantity
TIMEOUT, LONGEST_S, LARGEST = httpx.Timeout(10.0, connect=3.0), 20.0, 16 * 1024 * 1024


@dataclass(frozen=True)
class Use:
    """Of all pods in one namespace. Bytes, and CPU seconds a second."""

    memory_bytes: int | None = None
    cpu_cores: float | None = None
    disk_bytes: int | None = None


class Meter:
    """Keeps the newest figures of a region. `prometheus` is its address, or empty."""

    def __init__(self, client: Client, prometheus: str = "") -> None:
        self._client, self._prometheus = client, prometheus
        self._read: tuple[float, dict[str, Use]] | None = None

    def read(self) -> Mapping[str, Use]:
        """Return what is known, by namespace; what can't be had now is left out."""
        now = time.monotonic()
        if self._read is None or now - self._read[0] > EVERY_S:
            pods, disks = self._pods(), volumes(self._prometheus) if self._prometheus else {}
            found = {key: _merged(pods.get(key), disks.get(key)) for key in {*pods, *disks}}
            self._read = now, found
        return self._read[1]

    def _pods(self) -> dict[str, Use]:
        try:
            # Tried once: where metrics-server is away its API answers 503 for as long.
            return of_pods(self._client.listed(PODS, patience=0.0, labelSelector=SERVER))
        except ProviderError:
            return {}


class Sizes:
    """Keeps the newest sizes of the databases in a region's own PostgreSQL."""

    def __init__(self, databases: Databases) -> None:
        self._databases = databases
        self._read: tuple[float, Mapping[str, int]] | None = None

    def read(self) -> Mapping[str, int]:
        """Return what is known, by the database's name. Thousands are asked for rarely: each is a folder to look at."""
        now = time.monotonic()
        if self._read is None or now - self._read[0] > SIZES_EVERY_S:
            try:
                self._read = now, self._databases.sizes()
            except ProviderError:
                self._read = now, {}
        return self._read[1]


def with_database(use: Use, size: int | None, *, only: bool) -> Use:
    """Add a database that lies outside. `only`: nothing else of the server lies on a disk that must be known."""
    known = use.disk_bytes is not None or only
    return replace(use, disk_bytes=(use.disk_bytes or 0) + size) if size is not None and known else use


def of_pods(pods: Iterable[Mapping[str, Any]]) -> dict[str, Use]:
    """Add up PodMetrics by namespace. One that makes no sense is left out."""
    found: dict[str, Use] = {}
    for pod in pods:
        try:
            usages = [each["usage"] for each in pod["containers"]]
            memory = sum(int(_number(each["memory"])) for each in usages)
            cores = sum(float(_number(each["cpu"])) for each in usages)
            namespace = str(pod["metadata"]["namespace"])
        except (KeyError, TypeError, ValueError, ArithmeticError):
            continue
        before = found.get(namespace, Use())
        if memory >= 0 and cores >= 0:
            found[namespace] = Use((before.memory_bytes or 0) + memory, (before.cpu_cores or 0.0) + cores)
    return found


def volumes(prometheus: str) -> dict[str, int]:
    """Return the bytes used of each namespace's volumes; empty where the Prometheus does not answer as one."""
    try:
        with httpx.Client(timeout=TIMEOUT, trust_env=False, headers={"Accept-Encoding": "identity"}) as http:
            url = f"{prometheus.rstrip('/')}/api/v1/query"
            with http.stream("GET", url, params={"query": QUERY}) as answer:
                found = json.loads(_whole(answer.raise_for_status()))
        rows = [(str(row["metric"]["namespace"]), float(row["value"][1])) for row in found["data"]["result"]]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return {}
    return {namespace: int(size) for namespace, size in rows if math.isfinite(size) and size >= 0}


def _whole(answer: httpx.Response) -> bytes:
    body, end = b"", time.monotonic() + LONGEST_S
    for chunk in answer.iter_raw():
        body += chunk
        if len(body) > LARGEST or time.monotonic() > end:
            raise httpx.ReadError("It answers without end.")
    return body


def _merged(pods: Use | None, disk: int | None) -> Use:
    found = pods or Use()
    return Use(found.memory_bytes, found.cpu_cores, disk)
