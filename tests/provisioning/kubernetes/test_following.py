"""A quiet look at a region costs next to nothing, and no change is missed: on the real API server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from provisioning.providers.kubernetes.client import Client, connect
from provisioning.providers.kubernetes.following import Following
from provisioning.providers.kubernetes.objects import SERVER as LABEL
from provisioning.providers.kubernetes.provider import SERVERS
from tests.chart import values
from tests.cluster.api import Api
from tests.operator.servers import SERVER, Servers, small
from tests.provisioning.kubernetes.conftest import inline

if TYPE_CHECKING:
    from tests.cluster.launch import Cluster

pytestmark = pytest.mark.xdist_group("cluster")


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    made = connect(inline(cluster.kubeconfig))
    yield made
    made.close()


@pytest.fixture
def following(client: Client) -> Following[int]:
    """Keeps how many people each server may have."""
    return Following(client, SERVERS, LABEL, lambda each: int(each["spec"]["limits"]["maxUsers"]))


@pytest.fixture
def servers(api: Api) -> Iterator[Servers]:
    made = Servers(api)
    yield made
    made.remove()


def make(servers: Servers, users: int) -> dict[str, Any]:
    namespace = servers.place()
    wanted = values.matrix_server(small(limits={"maxUsers": users}), namespace)
    wanted["metadata"]["labels"] = {LABEL: namespace.removeprefix("hearth-")}
    return servers.api.apply(wanted)[0]


def test_it_follows_what_is_made_changed_and_removed(following: Following[int], servers: Servers) -> None:
    first = make(servers, 61)
    assert 61 in following.now(patience=5)
    second = make(servers, 62)
    servers.api.patch(first, {"spec": {"limits": {"maxUsers": 63}}})
    found = following.now(patience=5)
    assert {62, 63} <= set(found)
    assert 61 not in found
    servers.api.delete(*SERVER, "synapse", second["metadata"]["namespace"])
    assert 62 not in following.now(patience=5)
    assert following.now(patience=5).count(63) == 1
    assert following.lists == 1


def test_a_version_that_is_forgotten_is_read_anew(following: Following[int], servers: Servers) -> None:
    make(servers, 64)
    following.now(patience=5)
    following._version = "1"
    make(servers, 65)
    assert {64, 65} <= set(following.now(patience=5))
    assert following.lists == 2


def test_an_account_that_may_not_watch_reads_everything(
    cluster: Cluster, servers: Servers, api: Api, namespace: str
) -> None:
    """One that was bound to the role before the role had the verb."""
    meta, group = {"name": namespace}, "rbac.authorization.k8s.io"
    rule = {"apiGroups": ["hearth.host"], "resources": ["matrixservers"], "verbs": ["get", "list"]}
    ref = {"apiGroup": group, "kind": "ClusterRole", "name": namespace}
    account = {"kind": "ServiceAccount", "name": "default", "namespace": namespace}
    api.apply({"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": meta, "rules": [rule]})
    bound = {"apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding", "metadata": meta}
    api.apply({**bound, "roleRef": ref, "subjects": [account]})
    content = yaml.safe_load(inline(cluster.kubeconfig))
    content["users"][0]["user"] = {"token": api.token(namespace, "default")}
    client = connect(yaml.safe_dump(content))
    following = Following(client, SERVERS, LABEL, lambda each: int(each["spec"]["limits"]["maxUsers"]))
    try:
        for users in (66, 67, 68):
            make(servers, users)
            assert users in following.now(patience=5)
        assert following.lists == 3
    finally:
        client.close()
        api.delete(f"{group}/v1", "ClusterRoleBinding", namespace)
        api.delete(f"{group}/v1", "ClusterRole", namespace)
