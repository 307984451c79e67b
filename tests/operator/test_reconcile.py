"""A MatrixServer becomes what it asks for, stays so, and says what is: on a real API server."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.cluster.api import Object
from tests.operator.process import Operator
from tests.operator.servers import STATEFUL, Server, Servers, large, small

pytestmark = pytest.mark.xdist_group("cluster-operator")

CONFIGURATION = ("v1", "ConfigMap")
SERVICE = ("v1", "Service")
CLAIM = ("v1", "PersistentVolumeClaim")
CLUSTER = ("postgresql.cnpg.io/v1", "Cluster")
KINDS = (
    SERVICE,
    CONFIGURATION,
    STATEFUL,
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("networking.k8s.io/v1", "Ingress"),
    ("v1", "ResourceQuota"),
    ("v1", "LimitRange"),
    ("v1", "ServiceAccount"),
    ("cert-manager.io/v1", "Certificate"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
)


def writes(operator: Operator) -> float:
    """Return how often the operator has written anything but its lease."""
    return sum(
        number
        for name, number in operator.numbers().items()
        if name.startswith("hearth_operator_requests_total") and any(verb in name for verb in WRITES)
    )


WRITES = ("patch", "create", "delete")


def test_it_works(server: Server) -> None:
    status = server.status()
    assert server.condition("Ready")["reason"] == "Answers"
    assert server.condition("Degraded")["status"] == "False", status
    assert status["signingKeyId"] == "ed25519:a_Test"
    assert status["address"] == "https://matrix.alice.example"
    assert status["release"] == {
        "version": "1.163.2", "image": "images.example/synapse:v1.163.2", "schemaVersion": 94,
    }  # fmt: skip
    owner = server.now()["metadata"]["uid"]
    for kind in KINDS:
        children = [
            each for each in server.api.list(*kind, server.namespace) if each["metadata"].get("ownerReferences")
        ]
        assert children, f"no {kind[1]}"
        assert {each["metadata"]["ownerReferences"][0]["uid"] for each in children} == {owner}


def test_a_large_server_with_all_its_parts(operator: Operator, servers: Servers) -> None:
    server = servers.make(large())
    server.wait_ready()
    assert server.condition("DatabaseReady") | {"lastTransitionTime": ""} == {
        "type": "DatabaseReady", "status": "True", "reason": "Healthy", "message": "1 of 1 instances are ready.",
        "observedGeneration": 1, "lastTransitionTime": "",
    }  # fmt: skip
    assert server.condition("CertificateReady")["status"] == "True"
    assert server.status()["replicas"] == 1
    assert "synapse-generic" in server.status()["selector"]
    assert {each["name"] for each in server.status()["components"]} >= {"synapse-main", "synapse-generic", "postgres"}


def test_nothing_is_written_or_read_while_nothing_changes(server: Server, operator: Operator) -> None:
    time.sleep(6)  # counts of a status are written a little later
    before = operator.numbers()
    time.sleep(4)
    after = operator.numbers()
    for verb in (*WRITES, "get", "list"):
        name = f'hearth_operator_requests_total{{verb="{verb}"}}'
        assert after.get(name, 0) == before.get(name, 0), verb


def test_a_new_operator_adopts_without_a_write_and_without_a_list(server: Server, operator: Operator) -> None:
    large_one = Servers(server.api)
    other = large_one.make(large())
    try:
        other.wait_ready()
        time.sleep(6)
        versions = {str(each["metadata"]["uid"]): each["metadata"]["resourceVersion"] for each in _all(other)}
        operator.kill()
        operator.start()
        operator.wait_for(r"(?s)saw \d+ servers.*saw (\d+) servers")
        time.sleep(5)
        assert writes(operator) == 0, operator.text()
        assert operator.numbers().get('hearth_operator_requests_total{verb="list"}', 0) == 0
        assert {str(each["metadata"]["uid"]): each["metadata"]["resourceVersion"] for each in _all(other)} == versions
        relists = {name: number for name, number in operator.numbers().items() if "relists_total" in name}
        assert relists
        assert set(relists.values()) == {1.0}
    finally:
        large_one.remove()


def _all(server: Server) -> list[dict[str, dict[str, str]]]:
    """Return every child whose resource version nobody but the operator moves."""
    quiet = (SERVICE, CONFIGURATION, ("networking.k8s.io/v1", "NetworkPolicy"), ("v1", "LimitRange"))
    return [each for kind in quiet for each in server.api.list(*kind, server.namespace)]


def test_a_change_reaches_only_what_it_concerns(server: Server) -> None:
    service = server.need(SERVICE, "synapse-main")
    server.change(limits={"maxUsers": 77})
    server.wait("Progressing", "False")
    server.wait_child(STATEFUL, "synapse-main", lambda found: found["metadata"]["generation"] == 2)
    assert server.need(SERVICE, "synapse-main")["metadata"]["resourceVersion"] == service["metadata"]["resourceVersion"]


def test_what_is_not_wanted_any_more_is_removed(server: Server) -> None:
    rule = ("monitoring.coreos.com/v1", "PrometheusRule")
    assert server.child(rule, "synapse")
    server.change(monitoring={"enabled": False})
    server.api.wait("removal of the rule", lambda: server.child(rule, "synapse") is None)
    server.wait_ready()


def test_an_edit_by_hand_is_undone_and_told(server: Server) -> None:
    service = server.need(SERVICE, "synapse-main")
    server.api.patch(service, {"spec": {"selector": {"app.kubernetes.io/name": "elsewhere"}}})
    wanted = service["spec"]["selector"]
    server.wait_child(SERVICE, "synapse-main", lambda found: found["spec"]["selector"] == wanted)
    assert "hearth-tests" in server.wait_event("EditUndone")


@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [
        (STATEFUL, "synapse-main", {"spec": {"replicas": 0}}),
        (("networking.k8s.io/v1", "NetworkPolicy"), "synapse", {"spec": {"egress": [{}]}}),
        (("networking.k8s.io/v1", "NetworkPolicy"), "synapse", {"metadata": {"labels": {"hearth.host/server": None}}}),
        (("v1", "ResourceQuota"), "server", {"spec": {"hard": {"pods": "1000"}}}),
        (CONFIGURATION, None, {"data": {"homeserver.yaml": "server_name: mallory.example"}}),
        (SERVICE, "synapse-main", {"metadata": {"annotations": {"hearth.host/applied": "1-0000000000000000"}}}),
        (SERVICE, "synapse-main", {"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}}),
        (SERVICE, "synapse-main", {"metadata": {"ownerReferences": None}}),
    ],
)
def test_every_kind_of_edit_is_undone(
    server: Server, kind: tuple[str, str], name: str | None, change: dict[str, object]
) -> None:
    if name is None:
        found = server.api.list(*kind, server.namespace)
        name = next(each["metadata"]["name"] for each in found if "homeserver.yaml" in (each.get("data") or {}))
    before = server.need(kind, name)
    server.api.patch(before, change)

    def restored(found: Object) -> bool:
        parts = ("spec", "data")
        keys = ("labels", "annotations")
        same = all(before.get(part) == found.get(part) for part in parts)
        same = same and all(before["metadata"].get(key) == found["metadata"].get(key) for key in keys)
        return same and bool(found["metadata"].get("ownerReferences"))

    server.wait_child(kind, name, restored)


@pytest.mark.parametrize(
    ("kind", "name", "change", "path"),
    [
        (CONFIGURATION, None, {"data": {"mallory": "x"}}, ("data", "mallory")),
        (
            ("v1", "ResourceQuota"),
            "server",
            {"spec": {"hard": {"count/secrets": "1"}}},
            ("spec", "hard", "count/secrets"),
        ),
        (STATEFUL, "synapse-main", {"spec": {"minReadySeconds": 3}}, ("spec", "minReadySeconds")),
    ],
)
def test_what_somebody_adds_is_taken_away(
    server: Server, kind: tuple[str, str], name: str | None, change: dict[str, object], path: tuple[str, ...]
) -> None:
    if name is None:
        found = server.api.list(*kind, server.namespace)
        name = next(each["metadata"]["name"] for each in found if "homeserver.yaml" in (each.get("data") or {}))
    server.api.patch(server.need(kind, name), change)

    def gone(found: Object) -> bool:
        value: Any = found
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        return not value

    server.wait_child(kind, name, gone)
    server.wait_event("EditUndone")


@pytest.mark.parametrize(("kind", "name"), [(SERVICE, "synapse-main"), (STATEFUL, "synapse-main")])
def test_a_deleted_child_is_made_again_and_told(server: Server, kind: tuple[str, str], name: str) -> None:
    before = server.need(kind, name)["metadata"]["uid"]
    server.api.delete(*kind, name, server.namespace)
    server.wait_child(kind, name, lambda found: found["metadata"]["uid"] != before)
    assert name in server.wait_event("Restored")
    server.wait_ready()


def test_a_restart_rolls_the_processes(server: Server) -> None:
    server.change(restarts=1)
    server.wait_child(STATEFUL, "synapse-main", lambda found: found["metadata"]["generation"] == 2)
    server.wait_ready()


def test_a_new_secret_rolls_the_processes(server: Server) -> None:
    server.change(secret={"revision": "r2"})
    server.wait_child(STATEFUL, "synapse-main", lambda found: found["metadata"]["generation"] == 2)
    server.wait_ready()


def test_a_wrong_signing_key_is_never_called_ready(operator: Operator, servers: Servers) -> None:
    server = servers.make(small(secret={"signingKeyId": "ed25519:a_Other"}))
    found = server.wait("Ready", "False", "SigningKeyMismatch")
    assert "ed25519:a_Test" in found["message"]


def test_deleting_leaves_nothing_and_asks_for_the_finalizer(server: Server) -> None:
    assert server.now()["metadata"]["finalizers"] == ["hearth.host/final-backup"]
    server.api.delete("hearth.host/v1", "MatrixServer", "synapse", server.namespace)
    server.api.wait(
        "end of all children",
        lambda: (
            not any(
                each["metadata"].get("ownerReferences")
                for kind in KINDS
                for each in server.api.list(*kind, server.namespace)
            )
        ),
        seconds=60,
    )


def test_deleting_the_namespace_leaves_nothing(server: Server) -> None:
    server.api.delete("v1", "Namespace", server.namespace)
    server.api.wait(
        "end of the namespace", lambda: server.api.get("v1", "Namespace", server.namespace) is None, seconds=60
    )
