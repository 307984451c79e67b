"""What can be wrong with a server or its cluster: a named reason, a sentence, and back when it is put right."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from tests.chart import values
from tests.chart.processes import Fleet
from tests.chart.render import render
from tests.cluster.api import Api
from tests.cluster.furnish import NAME
from tests.operator.homeservers import Homeservers
from tests.operator.process import Operator
from tests.operator.servers import SERVER, STATEFUL, Server, Servers, large, small
from tests.provisioning.kubernetes.postgres import PASSWORD
from tests.provisioning.kubernetes.postgres import Server as Postgres

pytestmark = pytest.mark.xdist_group("cluster-operator")

DEFINITION = Path(__file__).resolve().parents[2] / "provisioning" / "chart" / "crds" / "hearth.host_matrixservers.yaml"
LOGS, LINES = 2048, 80
"""Bytes and lines of a log that a kubelet takes for a container's last words (FallbackToLogsOnError)."""


def test_a_quota_that_is_exceeded(operator: Operator, servers: Servers) -> None:
    namespace = servers.place()
    quota = {"name": "by-hand", "namespace": namespace}
    hard = {"pods": "0"}
    servers.api.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": quota, "spec": {"hard": hard}})
    server = servers.make(namespace=namespace)
    found = server.wait("Ready", "False", "QuotaExceeded", seconds=60)
    assert "synapse-main" in found["message"]
    assert server.condition("Degraded")["reason"] == "QuotaExceeded"
    servers.api.delete("v1", "ResourceQuota", "by-hand", namespace)
    # Kubernetes' own controller tries again after a pause that doubles; an edit wakes it.
    server.change(restarts=1)
    server.wait_ready(seconds=60)
    assert server.condition("Degraded")["status"] == "False"


def test_an_old_refusal_is_not_told_again(server: Server) -> None:
    """An Event lives for an hour. What it says of a time before the last change is over."""
    meta = {"name": "old", "namespace": server.namespace}
    about = {"apiVersion": "apps/v1", "kind": "StatefulSet", "namespace": server.namespace, "name": "synapse-main"}
    server.api.apply(
        {
            "apiVersion": "v1", "kind": "Event", "metadata": meta, "involvedObject": about, "type": "Warning",
            "reason": "FailedCreate", "message": "create Pod synapse-main-0 failed: exceeded quota: server",
            "lastTimestamp": "2020-01-01T00:00:00Z", "source": {"component": "statefulset-controller"},
        }
    )  # fmt: skip
    by_hand = {"name": "by-hand", "namespace": server.namespace}
    limits = [{"type": "Container", "max": {"cpu": "1m"}, "default": {"cpu": "1m"}, "defaultRequest": {"cpu": "1m"}}]
    server.api.apply({"apiVersion": "v1", "kind": "LimitRange", "metadata": by_hand, "spec": {"limits": limits}})
    server.change(restarts=1)
    found = server.wait("Degraded", "True", "PodsRefused", seconds=60)
    assert "maximum cpu" in found["message"]
    server.api.delete("v1", "LimitRange", "by-hand", server.namespace)
    server.change(restarts=2)  # Kubernetes' own controller tries again after a pause that doubles; an edit wakes it
    server.wait_ready(seconds=60)
    assert not [note for reason, note in server.events() if reason == "QuotaExceeded"]


def test_a_storage_class_that_is_missing(operator: Operator, servers: Servers) -> None:
    server = servers.make(large(redis={"own": {"storage": {"class": "not-there"}}}))
    found = server.wait("Degraded", "True", "StorageClassMissing", seconds=60)
    assert "not-there" in found["message"]


def test_no_node_has_room(operator: Operator, servers: Servers) -> None:
    server = servers.make(small(nodeSelector={"example.org/none": "such"}))
    found = server.wait("Ready", "False", "Unschedulable", seconds=60)
    assert "No data is lost" in found["message"]
    server.change(nodeSelector=None)
    server.wait_ready(seconds=60)


def test_a_certificate_that_fails(operator: Operator, servers: Servers) -> None:
    server = servers.make(small(routing={"certificate": {"issuerRef": {"name": "broken", "kind": "ClusterIssuer"}}}))
    found = server.wait("CertificateReady", "False", "Failed", seconds=60)
    assert "issuer refused" in found["message"]
    assert server.wait("Degraded", "True", "CertificateFailed")
    server.change(routing={"certificate": {"issuerRef": {"name": NAME}}})
    server.wait("CertificateReady", "True")
    server.wait("Degraded", "False")


ON_A_VOLUME = {"media": {"s3": None, "volume": {"size": "20Gi", "class": "encrypted"}}}


@pytest.fixture(scope="module")
def refused_by_a_database() -> tuple[int, str]:
    """How the main process ends, and what it says, when a real PostgreSQL refuses the password of its Secret."""
    with Postgres() as postgres:
        place = f"host={postgres.folder} user=postgres password={PASSWORD} dbname=postgres"
        with Fleet(render(values.changed(values.monolith(), ON_A_VOLUME)), place) as fleet:
            fleet.prepare("synapse-main-0")
            fleet.start("synapse-main-0")
            return fleet.processes["synapse-main-0"].wait(120), fleet.log("synapse-main-0")


def test_a_wrong_database_secret(
    server: Server, homeservers: Homeservers, refused_by_a_database: tuple[int, str]
) -> None:
    """The pods are kwok's: their words are of a real process and a real PostgreSQL, kept as a kubelet keeps them."""
    homeservers.silent.add(server.namespace)
    pod = server.api.get("v1", "Pod", "synapse-main-0", server.namespace)
    assert pod is not None
    assert pod["spec"]["containers"][0]["terminationMessagePolicy"] == "FallbackToLogsOnError"
    code, log = refused_by_a_database
    said = "\n".join(log[-LOGS:].splitlines()[-LINES:])
    state = {
        "name": "synapse", "image": "x", "imageID": "x", "ready": False, "restartCount": 2,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": code, "message": said}},
    }  # fmt: skip
    conditions = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "False"}]
    server.api.patch(pod, {"status": {"containerStatuses": [state], "conditions": conditions}}, sub="status")
    found = server.wait("Ready", "False", "DatabaseRefused", seconds=60)
    assert "password of this server's Secret" in found["message"]
    assert server.condition("DatabaseReady")["reason"] == "DatabaseRefused"


def test_a_server_that_does_not_answer(operator: Operator, servers: Servers, homeservers: Homeservers) -> None:
    namespace = servers.place()
    homeservers.silent.add(namespace)
    server = servers.make(namespace=namespace)
    found = server.wait("Ready", "False", "NotAnswering", seconds=60)
    assert "502" in found["message"]
    homeservers.silent.discard(namespace)
    server.wait_ready()


def test_a_namespace_that_is_stuck_in_its_end(operator: Operator, servers: Servers) -> None:
    server = servers.make()
    server.wait_ready()
    meta = {"name": "stuck", "namespace": server.namespace, "finalizers": ["example.org/never"]}
    server.api.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})
    server.api.delete("v1", "Namespace", server.namespace)
    try:
        server.api.wait("end of the server", lambda: server.api.get(*SERVER, "synapse", server.namespace) is None)
        before = operator.numbers()["hearth_operator_turns_total"]
        time.sleep(4)
        assert operator.numbers()["hearth_operator_turns_total"] - before < 10
    finally:
        server.api.patch(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}, {"metadata": {"finalizers": None}}
        )


def test_the_definition_is_upgraded_under_it(server: Server, api: Api) -> None:
    newer = yaml.safe_load(DEFINITION.read_text())
    spec = newer["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["fromTheFuture"] = {"type": "object", "properties": {"on": {"type": "boolean"}}}
    api.apply(newer)
    try:
        server.change(limits={"maxUsers": 60})
        server.wait_child(STATEFUL, "synapse-main", lambda each: each["metadata"]["generation"] == 2)
        server.wait_ready()
        api.wait("field of the new definition", lambda: _accepts(server))
        found = server.wait("Degraded", "True", "RenderFailed")
        assert "update the operator" in found["message"]
        assert server.condition("Ready")["status"] == "True", "what runs goes on running"
        server.change(fromTheFuture=None)
        server.wait("Degraded", "False")
    finally:
        api.apply(yaml.safe_load(DEFINITION.read_text()))


def _accepts(server: Server) -> bool:
    server.change(fromTheFuture={"on": True})
    return "fromTheFuture" in server.now()["spec"]


def test_somebody_who_keeps_editing_is_corrected_less_and_less_often(server: Server) -> None:
    rule = ("monitoring.coreos.com/v1", "PrometheusRule")
    wanted = server.need(rule, "synapse")["spec"]["groups"]
    for number in range(5):
        server.api.patch(server.need(rule, "synapse"), {"spec": {"groups": [{"name": f"mallory-{number}"}]}})
        time.sleep(0.4)
    found = server.wait("Degraded", "True", "EditedAgain")
    assert "hearth-tests" in found["message"]
    server.wait_child(rule, "synapse", lambda each: each["spec"]["groups"] == wanted, seconds=60)
