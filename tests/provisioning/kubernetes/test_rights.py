"""With no more than the rights of Hearth's chart, and under its policies, Hearth and its operator do all their work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from provisioning import clusters
from provisioning.models import Cluster as Row
from provisioning.models import ServerStatus
from tenants.models import Server
from tenants.releases import newest
from tests.cluster.launch import Cluster
from tests.operator.installed import account, installed
from tests.operator.process import Operator
from tests.provisioning.kubernetes.conftest import BASE, inline
from tests.provisioning.kubernetes.pods import Pods
from tests.provisioning.kubernetes.test_life import becomes, carry_out

__all__ = ["installed"]
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.xdist_group("cluster")]


@pytest.fixture
def cluster(installed: Cluster) -> Cluster:
    """The region is the cluster that has the chart in it."""
    return installed


@pytest.fixture
def pods(installed: Cluster) -> Iterator[Pods]:
    """What answers in the place of pods there."""
    with Pods(installed.kubeconfig) as running:
        yield running


@pytest.fixture
def operator(installed: Cluster, tmp_path: Path, pods: Pods) -> Iterator[Operator]:
    """An operator with its own account's rights."""
    kubeconfig = account(installed, "hearth-operator", tmp_path)
    with Operator(kubeconfig, tmp_path, pods.route, administrator=installed.kubeconfig) as running:
        yield running


def test_it_works(
    cluster: Cluster,
    operator: Operator,
    make_region: Callable[..., Row],
    make_server: Callable[..., Server],
    tmp_path: Path,
) -> None:
    made = make_region(inline(account(cluster, "hearth-provider", tmp_path)), priority_class="hearth-server")
    found = clusters.check(actor="staff", cluster=made)
    wrong = {each["what"]: each["text"] for each in found if each["state"] != "good"}
    usual = {"Encryption of etcd", "Processors and memory", "Volumes"}
    assert set(wrong) == usual | {"Lowest TLS version", "Namespace of the router"}, wrong
    server = make_server("least", region="cell", server_name=f"least.{BASE}", version=newest().version)
    carry_out(server)
    becomes(server, "ready")
    carry_out(server, restarts=1)
    carry_out(server, users=7)
    carry_out(server, desired="suspended", suspend_message="Closed.")
    carry_out(server, desired="running", suspend_message="")
    becomes(server, "ready")
    carry_out(server, desired="deleted")
    assert ServerStatus.objects.get(server=server).phase == "deleted"
    assert "forbidden" not in operator.text().lower()
