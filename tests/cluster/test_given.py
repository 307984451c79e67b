"""A cluster that is there already is used only if it says of itself that it is for tests."""

from __future__ import annotations

import pytest

from tests.cluster.furnish import MARK
from tests.cluster.given import Given
from tests.cluster.launch import Cluster

pytestmark = pytest.mark.xdist_group("cluster")


def test_a_cluster_for_tests_is_taken(cluster: Cluster) -> None:
    with Given(cluster.kubeconfig) as given:
        assert given.api.list("cert-manager.io/v1", "ClusterIssuer")
        with pytest.raises(BaseException, match="not ours to restart"):
            given.restart_api_server()


def test_any_other_is_left_alone(cluster: Cluster) -> None:
    system = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}}
    cluster.api.patch(system, {"metadata": {"labels": dict.fromkeys(MARK)}})
    try:
        with pytest.raises(RuntimeError, match="Nothing was changed") as refusal:
            Given(cluster.kubeconfig)
        assert "kubectl label namespace kube-system hearth.host/test-cluster=true" in str(refusal.value)
    finally:
        cluster.api.patch(system, {"metadata": {"labels": MARK}})
