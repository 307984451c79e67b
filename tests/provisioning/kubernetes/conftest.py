"""A region that is the run's real cluster, with a real operator in it."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.cluster.api import Api, ApiError
from tests.cluster.furnish import NAME
from tests.operator.process import Operator
from tests.operator.servers import permit
from tests.provisioning.kubernetes.pods import Pods

if TYPE_CHECKING:
    from accounts.models import User
    from provisioning.models import Cluster as Row
    from provisioning.models import Region
    from tenants.models import Server
    from tests.cluster.given import Given
    from tests.cluster.launch import Cluster

BASE = "region.example"
SERVER = ("hearth.host/v1", "MatrixServer", "synapse")


def inline(path: Path) -> str:
    """Return a kubeconfig that is whole in itself, as the staff page wants it."""
    content = yaml.safe_load(path.read_text())
    for entry, keys in ((content["clusters"][0]["cluster"], ["certificate-authority"]),
                        (content["users"][0]["user"], ["client-certificate", "client-key"])):  # fmt: skip
        for key in keys:
            if key in entry:
                entry[f"{key}-data"] = base64.b64encode((path.parent / entry.pop(key)).read_bytes()).decode()
    return str(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def pods(cluster: Cluster | Given) -> Iterator[Pods]:
    """What answers in the place of every server's pods."""
    with Pods(cluster.kubeconfig) as running:
        yield running


@pytest.fixture(scope="module")
def operator(cluster: Cluster | Given, tmp_path_factory: pytest.TempPathFactory, pods: Pods) -> Iterator[Operator]:
    """An operator for all tests of a file."""
    with Operator(cluster.kubeconfig, tmp_path_factory.mktemp("operator"), pods.route) as running:
        yield running


@pytest.fixture
def make_region(
    alice: User, cluster: Cluster | Given, pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Row]]:
    """Return a function that makes an open Kubernetes region by Hearth's own verb."""
    from provisioning import clusters, engine
    from provisioning.models import Region, ServerStatus
    from provisioning.providers.kubernetes import client, provider

    engine.stopping.clear()
    monkeypatch.setattr(engine, "FIRST_WAIT", 0.0)
    monkeypatch.setattr(client, "PATIENCE", 10.0)
    monkeypatch.setattr(provider, "LOOK", 0.1)

    def make(kubeconfig: str = "", *, code: str = "cell", **changes: Any) -> Row:
        columns = {
            "synapse_image": "images.example/synapse:v{version}",
            "postgres_image": "images.example/postgresql:17.6",
            "redis_image": "images.example/redis:7.4",
            "storage_class": NAME,
            "ingress_class": NAME,
            "issuer": NAME,
            "route": pods.route,
        }
        access = {"kubeconfig": kubeconfig or inline(cluster.kubeconfig)}
        made = clusters.create(
            actor=alice, code=code, name="The cell", base_domain=BASE, **access, **(columns | changes)
        )
        Region.objects.filter(pk=made.region_id).update(open=True)
        return made

    yield make
    for key in ServerStatus.objects.values_list("server_id", flat=True):
        sweep(cluster.api, f"hearth-{key}")


@pytest.fixture
def region(make_region: Callable[..., Row]) -> Region:
    """The cluster as a region."""
    return make_region().region


@pytest.fixture
def server(make_server: Callable[..., Server], region: Region) -> Server:
    """One wanted server there."""
    from tenants.releases import newest

    return make_server("berry", region=region.code, server_name=f"berry.{BASE}", version=newest().version)


def sweep(api: Api, namespace: str) -> None:
    """Remove a server whether an operator runs or not."""
    permit(api, *SERVER, namespace)
    permit(api, "v1", "Namespace", namespace)
    found = api.get(*SERVER, namespace)
    if found is not None:
        api.delete(*SERVER, namespace)
        with contextlib.suppress(ApiError):  # gone in between
            api.patch(found, {"metadata": {"finalizers": None}})
    api.delete("v1", "Namespace", namespace)
