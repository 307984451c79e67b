"""A server that is brought back, one that is closed, and one that nobody outside reaches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.chart import values
from tests.cluster.furnish import NAME
from tests.cluster.given import Given
from tests.cluster.launch import Cluster
from tests.operator.homeservers import Homeservers
from tests.operator.process import Operator
from tests.operator.recovering import Recovering
from tests.operator.servers import DEPLOYMENT, ISSUER, STATEFUL, Server, Servers, large

pytestmark = pytest.mark.xdist_group("cluster-operator")

DATABASE = ("postgresql.cnpg.io/v1", "Cluster")
INGRESS, CERTIFICATE = ("networking.k8s.io/v1", "Ingress"), ("cert-manager.io/v1", "Certificate")
WANTED: dict[str, Any] = values.RECOVERY | {"issuerRef": ISSUER, "storage": {"size": "3Gi", "class": NAME}}
RESULT = {"point": "p1", "settled": {"sequences": {"events_stream_seq": 7}}}


@pytest.fixture(scope="module")
def pods() -> Iterator[Recovering]:
    with Recovering() as running:
        yield running


@pytest.fixture(scope="module")
def operator(
    cluster: Cluster | Given, tmp_path_factory: pytest.TempPathFactory, homeservers: Homeservers, pods: Recovering
) -> Iterator[Operator]:
    """An operator that asks the stand-in for pods."""
    folder = tmp_path_factory.mktemp("operator")
    with Operator(cluster.kubeconfig, folder, homeservers.address, "--recovery", pods.address) as running:
        yield running


def told(server: Server, **wanted: Any) -> dict[str, Any]:
    """Wait until `status.recovery` says this."""

    def reached() -> dict[str, Any] | None:
        found = dict(server.status().get("recovery") or {})
        return found if wanted.items() <= found.items() else None

    try:
        return dict(server.api.wait(f"recovery {wanted}", reached, seconds=60))
    except TimeoutError as error:
        raise AssertionError(f"{error}; it is {server.status()}") from None


def secret(revision: str) -> dict[str, Any]:
    return {"secret": {"revision": revision}}


def test_a_database_is_made_from_what_was_brought_back_and_synapse_starts_when_all_is_there(
    operator: Operator, servers: Servers, pods: Recovering
) -> None:
    server = servers.make(large(recovery=WANTED, routing={"unrouted": True}))
    namespace = server.namespace
    server.wait("Ready", "False", "Recovering")
    told(server, revision="v1", mode="restore", state="running")
    pod = server.wait_child(STATEFUL, "recovery", lambda found: found["spec"]["replicas"] == 1)
    assert pod["spec"]["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Delete", "whenScaled": "Retain"}
    pods.tell(namespace, "v1", "running", done_bytes=10, total_bytes=100, seconds_left=4.2)
    assert told(server, step="base", doneBytes=10, totalBytes=100)["secondsLeft"] == 4
    assert server.child(DATABASE, "postgres") is None, "nothing may be made before there is something to copy"

    pods.tell(namespace, "v1", "failed", code="KeysAway", text="Hearth is away.", retry=True)
    found = told(server, state="failed", code="KeysAway", text="Hearth is away.", retry=True)
    server.wait("Ready", "False", "RecoveryFailed")
    server.wait_child(STATEFUL, "recovery", lambda found: found["spec"]["replicas"] == 0)
    server.change(recovery=secret("v2"))  # another try
    pods.tell(namespace, "v2", "running", step="replay")
    found = told(server, revision="v2", state="running", step="replay")
    assert "code" not in found
    operator.kill()
    operator.start()

    pods.tell(namespace, "v2", "serving", step="copy", result=RESULT)
    database = server.wait_child(DATABASE, "postgres", lambda _: True)
    assert set(database["spec"]["bootstrap"]) == {"pg_basebackup"}
    found = told(server, state="done", revision="v2")
    assert found["result"] == RESULT
    server.wait("Ready", "False", "Recovered")
    server.wait("Progressing", "False")
    server.wait_child(STATEFUL, "recovery", lambda found: found["spec"]["replicas"] == 0)
    asked = pods.asked[namespace]

    server.change(recovery=None)
    server.wait_ready()
    server.api.wait("the pod's end", lambda: server.child(STATEFUL, "recovery") is None)
    assert pods.asked[namespace] == asked, "nobody is asked for nothing"
    assert told(server, state="done")["revision"] == "v2", "what was done stays said"
    assert server.need(DATABASE, "postgres")["spec"]["bootstrap"] == database["spec"]["bootstrap"]
    _gets_its_routes(server)


def _gets_its_routes(server: Server) -> None:
    assert server.condition("CertificateReady")["reason"] == "Unrouted"
    assert server.child(INGRESS, "synapse") is None
    assert server.child(CERTIFICATE, "synapse") is None
    server.change(routing={"unrouted": None})
    server.wait_child(INGRESS, "synapse", lambda _: True)
    server.wait("CertificateReady", "True", "Issued")


def test_what_is_there_is_settled_and_never_brought_back_over(
    operator: Operator, servers: Servers, pods: Recovering
) -> None:
    server = servers.make(large())
    server.wait_ready()
    pods.tell(server.namespace, "v1", "done", step="settle", result=RESULT)
    settle = {**WANTED, "settle": True, "storage": None}
    server.change(recovery=settle)
    found = told(server, state="done", mode="settle")
    assert (found["revision"], found["result"]) == ("v1", RESULT)
    assert server.need(STATEFUL, "synapse-main")["spec"]["replicas"] == 0
    server.wait_child(DEPLOYMENT, "recovery-settle", lambda found: found["spec"]["replicas"] == 0)

    server.change(recovery={**WANTED, **secret("v2"), "settle": False})
    assert told(server, state="failed", revision="v2")["code"] == "NotEmpty"
    server.change(recovery={**secret("v3"), "cancelled": True})
    told(server, state="cancelled", revision="v3")
    server.change(recovery=None)
    server.wait_ready()
    assert "recovery" not in server.status()

    server.change(closed=True)
    server.wait("Ready", "False", "Closed")
    server.wait("Progressing", "False")
    main = server.need(STATEFUL, "synapse-main")
    assert (main["spec"]["replicas"], main.get("status", {}).get("replicas", 0)) == (0, 0)
    annotations = server.need(DATABASE, "postgres")["metadata"]["annotations"]
    assert annotations["cnpg.io/hibernation"] == "off"
    server.change(closed=None)
    server.wait_ready()
