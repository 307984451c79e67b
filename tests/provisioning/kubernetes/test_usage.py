"""What servers of a cluster use: two lists for a region, however many servers, and nothing made up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.test import Client
from django.urls import reverse

from accounts.models import User
from provisioning import clusters, counting, observer
from provisioning.models import Cluster, Region, Sample, ServerStatus
from provisioning.providers.kubernetes import provider, usage, whose
from tenants.models import Server
from tenants.releases import newest
from tests.cluster.api import Api, Object
from tests.cluster.faults import FaultProxy
from tests.operator.process import Operator
from tests.provisioning.kubernetes.conftest import BASE, inline
from tests.provisioning.kubernetes.pods import LISTS, Pods
from tests.provisioning.kubernetes.test_life import carry_out

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.xdist_group("cluster")]
DEFINITION = ("apiextensions.k8s.io/v1", "CustomResourceDefinition", "pods.metrics.k8s.io")
GB = 10**9


@pytest.fixture
def metrics(api: Api) -> Iterator[None]:
    """A declared stand-in for metrics-server: nothing runs in kwok's pods, so their figures are objects of the test."""
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1beta1", "served": True, "storage": True, "schema": {"openAPIV3Schema": free}}
    names = {"plural": "pods", "singular": "pod", "kind": "PodMetrics", "listKind": "PodMetricsList"}
    api.apply(
        {
            "apiVersion": DEFINITION[0],
            "kind": DEFINITION[1],
            "metadata": {
                "name": DEFINITION[2],
                "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in of tests"},
            },
            "spec": {"group": "metrics.k8s.io", "scope": "Namespaced", "names": names, "versions": [version]},
        }
    )
    api.wait("metrics of pods", lambda: api.http.get(usage.PODS).status_code == 200)
    yield
    api.delete(*DEFINITION)
    api.wait("end of the metrics", lambda: api.http.get(usage.PODS).status_code == 404)


@pytest.fixture
def prometheus() -> Iterator[Prometheus]:
    """A declared stand-in for a Prometheus that reads kubelets: kwok's have no volumes."""
    with Prometheus() as running:
        yield running


class Prometheus:
    """Answers one instant query with the volumes it was given, in bytes by namespace."""

    def __init__(self) -> None:
        self.used: dict[str, Any] = {}
        self.asked: list[str] = []

    def __enter__(self) -> Prometheus:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                assert parts.path == "/api/v1/query"
                outer.asked += parse_qs(parts.query)["query"]
                rows = [{"metric": {"namespace": key}, "value": [1, str(used)]} for key, used in outer.used.items()]
                data = {"status": "success", "data": {"resultType": "vector", "result": rows}}
                body = json.dumps(data).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_words: Any) -> None:
                """Say nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"


def pod(name: str, namespace: str, *usages: tuple[str, str]) -> Object:
    """Return PodMetrics; each container uses (cpu, memory)."""
    containers = [
        {"name": f"c{number}", "usage": {"cpu": cpu, "memory": memory}} for number, (cpu, memory) in enumerate(usages)
    ]
    metadata = {"name": name, "namespace": namespace, "labels": {"hearth.host/server": namespace}}
    return {
        "apiVersion": "metrics.k8s.io/v1beta1",
        "kind": "PodMetrics",
        "metadata": metadata,
        "timestamp": "2026-01-01T00:00:00Z",
        "window": "15s",
        "containers": containers,
    }


@pytest.fixture
def measured(make_region: Callable[..., Cluster], make_server: Callable[..., Server], prometheus: Prometheus) -> Server:
    """A wanted server in a region that measures."""
    region = make_region(prometheus=prometheus.url).region
    return make_server("cherry", region=region.code, server_name=f"cherry.{BASE}", version=newest().version)


@pytest.mark.usefixtures("metrics")
def test_it_works(measured: Server, api: Api, pods: Pods, operator: Operator, prometheus: Prometheus) -> None:
    carry_out(measured)
    namespace = f"hearth-{measured.pk}"
    api.apply(pod("synapse-main-0", namespace, ("250m", "600Mi"), ("1500000n", "20Mi")))
    api.apply(pod("postgres-1", namespace, ("50m", "300Mi")))
    prometheus.used = {namespace: 3 * GB, "hearth-gone": 7}
    moment = int(time.time() * 1000)
    seen = [None, moment, moment - 3600_000, moment - 40 * 86400_000]
    pods.lists = {
        LISTS[0]: [{"name": f"@{number}:x", "last_seen_ts": at} for number, at in enumerate(seen)],
        LISTS[1]: [{"user_id": "@1:x", "media_count": 2, "media_length": 5_000_000}],
    }
    observer.observe()
    first = Sample.objects.get(server=measured)
    assert (first.memory_bytes, first.disk_bytes) == (920 * 2**20, 3 * GB)
    assert (first.users, first.media_bytes, first.cpu_seconds) == (2, 5_000_000, 0.0)
    assert ServerStatus.objects.get(server=measured).users == 2
    Sample.objects.update(at=first.at - timedelta(minutes=2))
    observer.observe()
    second = Sample.objects.filter(server=measured).latest("at")
    elapsed = (second.at - first.at).total_seconds() + 120
    assert second.cpu_seconds == pytest.approx(0.3015 * elapsed)
    Sample.objects.filter(pk=second.pk).update(at=second.at - timedelta(hours=1))
    Sample.objects.filter(pk=first.pk).delete()
    observer.observe()
    assert Sample.objects.filter(server=measured).latest("at").cpu_seconds == 0.0, "a gap begins anew"


def test_what_nobody_measures_is_unknown_and_not_zero(
    server: Server, operator: Operator, client_for: Callable[[User], Client], alice: User, pods: Pods
) -> None:
    carry_out(server)
    pods.lists = {}
    observer.observe()
    sample = Sample.objects.get(server=server)
    assert (sample.memory_bytes, sample.cpu_seconds, sample.disk_bytes) == (None, None, None)
    assert (sample.users, sample.media_bytes) == (0, 0), "Synapse was asked, and it has nobody"
    path = reverse("server", args=[server.organisation.slug, server.pk])
    page = client_for(alice).get(path).content.decode()
    assert page.count("Not measured here") == 2
    found = clusters.check(actor="staff", cluster=Cluster.objects.get())
    said = {each["what"]: each["text"] for each in found if each["state"] == "warn"}
    assert "Install metrics-server" in said["Processors and memory"]
    assert "how full volumes are" in said["Volumes"]


@pytest.mark.usefixtures("metrics")
def test_many_servers_cost_as_much_as_one(
    make_region: Callable[..., Cluster],
    fault_proxy: FaultProxy,
    api: Api,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("provisioning.providers.kubernetes.client.PAGE", 4)
    account = {"kind": "ServiceAccount", "name": "default", "namespace": namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding"}
    api.apply({**binding, "metadata": {"name": namespace}, "roleRef": role, "subjects": [account]})
    make_region(inline(fault_proxy.kubeconfig(api.token(namespace, "default"))))
    for number in range(10):
        api.apply(pod(f"p{number}", namespace, ("1", "1Mi")))
    region = clusters.provider_of(Region.objects.get())
    begun = time.monotonic()
    region.observe()
    region.observe()
    asked = [request for request in fault_proxy.requests if request.at >= begun]
    # Three pages of pods once, because figures are kept for a while.
    assert sum(request.path.startswith(usage.PODS) for request in asked) == 3
    # MatrixServers are read once; the second look asks only for what has changed.
    servers = [request.verb for request in asked if request.path == provider.SERVERS and request.status == 200]
    assert servers == ["list", "watch"]
    # Beside these, once, which cluster it is.
    assert [request.path for request in asked if request.verb not in {"list", "watch"}] == [whose.SYSTEM]


def test_figures_that_make_no_sense_are_left_out() -> None:
    fine = pod("a", "x", ("100m", "1Gi"), ("1", "1e3"))
    wrong: list[Any] = [
        {}, {**fine, "containers": None}, pod("b", "x", ("lots", "1Gi")), pod("c", "x", ("1", "-5Gi")),
        {**fine, "metadata": {}}, {**fine, "containers": [{"usage": {"cpu": "1"}}]},
    ]  # fmt: skip
    found = usage.of_pods([*wrong, fine])
    assert list(found) == ["x"]
    assert found["x"].memory_bytes == 2**30 + 1000
    assert found["x"].cpu_cores == pytest.approx(1.1)


@pytest.mark.parametrize("used", ["NaN", "+Inf", "-1", "much"])
def test_a_prometheus_that_makes_no_sense(prometheus: Prometheus, used: str) -> None:
    prometheus.used = {"hearth-a": used}
    assert usage.volumes(prometheus.url) == {}
    prometheus.used = {"hearth-a": "12"}
    assert usage.volumes(prometheus.url) == {"hearth-a": 12}
    assert "kubelet_volume_stats_used_bytes" in prometheus.asked[-1]


def test_one_that_is_away_keeps_nobody_waiting() -> None:
    assert usage.volumes("http://127.0.0.1:1") == {}
    assert usage.volumes("http://[") == {}


def test_people_are_counted_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "PAGE", 2)
    now = int(time.time() * 1000)
    people = [{"last_seen_ts": None}, *[{"last_seen_ts": now}] * 4, *[{"last_seen_ts": 5}] * 9]
    asked: list[str] = []

    class Answering:
        def request(self, _method: str, path: str, *, token: str) -> dict[str, Any]:
            assert token == "t"
            asked.append(path)
            query = parse_qs(urlsplit(path).query)
            first = int(query.get("from", ["0"])[0])
            if path.startswith(LISTS[1]):
                return {"users": "none"}
            return {"users": people[first : first + 2], "next_token": str(first + 2)}

    assert counting.count(Answering(), "t") == (4, None)  # type: ignore[arg-type]
    assert sum(path.startswith(LISTS[0]) for path in asked) == 3, "it ends with the first who was away for a month"
