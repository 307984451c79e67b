"""What holds a server's data is never made anew in silence, whoever deleted it: on a real API server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from provisioning.operator.keeping import ANEW
from tests.cluster.api import Api, ApiError, Object
from tests.cluster.furnish import NAME
from tests.operator.process import Operator
from tests.operator.servers import STATEFUL, Server, Servers, large

pytestmark = pytest.mark.xdist_group("cluster-operator")

CLAIM = ("v1", "PersistentVolumeClaim")
CLUSTER = ("postgresql.cnpg.io/v1", "Cluster")
DEFINITION = ("apiextensions.k8s.io/v1", "CustomResourceDefinition")


@pytest.fixture
def whole(operator: Operator, servers: Servers) -> Server:
    """A server with a database, a volume for media and one for Redis, Ready."""
    media = {"s3": None, "volume": {"size": "20Gi", "class": NAME}}
    made = servers.make(large(media=media))
    made.wait_ready(seconds=60)
    return made


def allow(server: Server) -> None:
    """Say that what is missing may be made anew."""
    generation = server.now()["metadata"]["generation"]
    server.api.patch(server.now(), {"metadata": {"annotations": {ANEW: str(generation)}}})


@pytest.mark.parametrize(("kind", "name"), [(CLUSTER, "postgres"), (CLAIM, "media")])
def test_what_held_data_and_is_gone_is_not_made_again(whole: Server, kind: tuple[str, str], name: str) -> None:
    before = whole.need(kind, name)["metadata"]["uid"]
    _delete(whole.api, kind, name, whole.namespace)
    found = whole.wait("Ready", "False", "DataMissing", seconds=60)
    assert "Restore a backup" in found["message"]
    assert whole.condition("Degraded")["reason"] == "DataMissing"
    whole.change(limits={"maxUsers": 51})
    whole.wait_child(STATEFUL, "synapse-main", lambda each: each["metadata"]["generation"] > 1)
    whole.wait("Ready", "False", "DataMissing")
    assert whole.child(kind, name) is None
    allow(whole)
    whole.wait_child(kind, name, lambda each: each["metadata"]["uid"] != before)
    whole.wait_ready(seconds=60)


def test_a_new_operator_does_not_make_it_either(whole: Server, operator: Operator) -> None:
    operator.kill()
    _delete(whole.api, CLUSTER, "postgres", whole.namespace)
    operator.start()
    whole.wait("Ready", "False", "DataMissing", seconds=60)
    assert whole.child(CLUSTER, "postgres") is None


def test_a_permission_of_before_the_last_change_counts_no_more(whole: Server) -> None:
    allow(whole)
    whole.change(limits={"maxUsers": 52})
    whole.wait_ready()
    _delete(whole.api, CLUSTER, "postgres", whole.namespace)
    whole.wait("Ready", "False", "DataMissing")
    assert whole.child(CLUSTER, "postgres") is None


def test_a_volume_that_holds_nothing_of_people_is_made_again(whole: Server) -> None:
    before = whole.need(CLAIM, "redis")["metadata"]["uid"]
    _delete(whole.api, CLAIM, "redis", whole.namespace)
    whole.wait_child(CLAIM, "redis", lambda each: each["metadata"]["uid"] != before)


@pytest.fixture
def definition(api: Api) -> Iterator[Object]:
    """The definition of databases, which the test may remove."""
    found = api.get(*DEFINITION, "clusters.postgresql.cnpg.io")
    assert found is not None
    meta = {key: found["metadata"][key] for key in ("name", "annotations") if key in found["metadata"]}
    whole = {"apiVersion": DEFINITION[0], "kind": DEFINITION[1], "metadata": meta, "spec": found["spec"]}
    yield whole
    api.apply(whole)
    api.wait("definition", lambda: _listed(api))


def test_a_definition_that_was_removed_and_came_back(whole: Server, definition: Object, servers: Servers) -> None:
    api = whole.api
    api.delete(*DEFINITION, definition["metadata"]["name"])
    api.wait("end of it", lambda: api.get(*DEFINITION, definition["metadata"]["name"]) is None)
    whole.wait("Degraded", "True", seconds=60)
    assert whole.condition("Degraded")["reason"] in {"DataMissing", "KindMissing"}
    api.apply(definition)
    api.wait("definition", lambda: _listed(api))
    # A new server has a database again, so the operator sees databases again.
    servers.make(large()).wait_ready(seconds=90)
    whole.change(limits={"maxUsers": 53})
    whole.wait("Ready", "False", "DataMissing", seconds=90)
    assert whole.child(CLUSTER, "postgres") is None


def _listed(api: Api) -> bool:
    try:
        api.list(*CLUSTER)
    except ApiError:
        return False
    return True


def _delete(api: Api, kind: tuple[str, str], name: str, namespace: str) -> None:
    """Delete by hand, and let go what protects a volume in use."""
    api.delete(*kind, name, namespace)
    found = api.get(*kind, name, namespace)
    if found is not None and found["metadata"].get("finalizers"):
        api.patch(found, {"metadata": {"finalizers": None}})
    api.wait("end of it", lambda: api.get(*kind, name, namespace) is None)
