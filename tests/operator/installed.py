"""A cluster with the chart of `platform/deploy` in it, and clients with the rights of its accounts."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import tools
from tests.cluster.api import Api, ApiError
from tests.cluster.fixtures import need_programs
from tests.cluster.launch import Cluster, write_kubeconfig

DEPLOY = Path(__file__).resolve().parents[2] / "platform" / "deploy"
SYSTEM = "hearth"


@pytest.fixture(scope="package")
def installed() -> Iterator[Cluster]:
    """A cluster of its own with the chart in it: its policies would forbid what other tests do."""
    need_programs()
    with Cluster() as cluster:
        cluster.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})
        definition = cluster.api.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", "matrixservers.hearth.host")
        assert definition is not None
        owned = {"meta.helm.sh/release-name": "hearth", "meta.helm.sh/release-namespace": SYSTEM}
        cluster.api.patch(
            definition,
            {"metadata": {"annotations": owned, "labels": {"app.kubernetes.io/managed-by": "Helm"}}},
        )
        install(cluster)
        cluster.api.wait("policies in force", lambda: denied(cluster.api))
        yield cluster


def install(cluster: Cluster) -> None:
    """Install the chart, or put back what was changed of it."""
    words = ["upgrade", "--install", "hearth", str(DEPLOY), "--namespace", SYSTEM, "--kubeconfig"]
    options = ["--set", "operator.image=images.example/hearth:1,monitoring.enabled=true,monitoring.labels.release=p"]
    subprocess.run(
        [str(tools.find("helm")), *words, str(cluster.kubeconfig), *options],
        check=True,
        env={"HOME": str(cluster.folder), "PATH": "/usr/bin:/bin"},
    )


def denied(api: Api) -> bool:
    """Say whether the policies are in force, which takes the API server some seconds."""
    name = "hearth-00000000-0000-0000-0000-000000000000"
    bad = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    try:
        api.apply(bad, dry_run=True)
    except ApiError:
        return True
    return False


def account(cluster: Cluster, name: str, folder: Path) -> Path:
    """Return a kubeconfig of one of the chart's accounts."""
    place = folder / f"{name}.kubeconfig"
    token = cluster.api.token(SYSTEM, name)
    write_kubeconfig(place, cluster.url, cluster.folder / "ca.crt", {"token": token})
    return place


@pytest.fixture
def as_operator(installed: Cluster, tmp_path: Path) -> Iterator[Api]:
    api = Api.from_kubeconfig(account(installed, "hearth-operator", tmp_path))
    yield api
    api.close()


@pytest.fixture
def as_hearth(installed: Cluster, tmp_path: Path) -> Iterator[Api]:
    api = Api.from_kubeconfig(account(installed, "hearth-provider", tmp_path))
    yield api
    api.close()
