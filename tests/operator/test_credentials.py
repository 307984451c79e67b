"""The operator's credentials in a pod: a token and an authority that are changed under it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from provisioning.operator.children import SERVERS
from provisioning.operator.kube.access import Access, InCluster
from provisioning.operator.kube.client import Client
from provisioning.operator.kube.errors import ApiError
from provisioning.operator.kube.reflector import Reflector
from provisioning.operator.store import Store
from tests.cluster.api import Api
from tests.cluster.certificates import Authority
from tests.cluster.faults import FaultProxy
from tests.cluster.given import Given
from tests.cluster.launch import Cluster
from tests.left_out import leave_out
from tests.operator.homeservers import Homeservers
from tests.operator.process import Operator
from tests.operator.servers import Servers, carried_out

pytestmark = pytest.mark.xdist_group("cluster-operator")

Act = Callable[[Client], Awaitable[None]]
RBAC = "rbac.authorization.k8s.io"


class Mounted:
    """A service account as the kubelet mounts it: links into a folder that is swapped whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0
        folder.mkdir()
        for name in ("token", "ca.crt"):
            (folder / name).symlink_to(f"..data/{name}")

    def put(self, token: str, authority: bytes) -> None:
        """Give it these, at once."""
        self._count += 1
        fresh = self.folder / f"..{self._count}"
        fresh.mkdir()
        (fresh / "token").write_text(token)
        (fresh / "ca.crt").write_bytes(authority)
        link = self.folder / "..fresh"
        link.symlink_to(fresh.name)
        link.replace(self.folder / "..data")


@pytest.fixture
def own(cluster: Cluster | Given) -> Cluster:
    """The cluster, with keys that are ours."""
    if not isinstance(cluster, Cluster):
        leave_out("KUBECONFIG gives a cluster whose keys are not ours.")
    return cluster


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    """A pod's service account, still empty."""
    return Mounted(tmp_path / "account")


def environment(port: str | int) -> dict[str, str]:
    """Return what Kubernetes sets in every pod."""
    return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(port)}


def grant(api: Api, name: str) -> None:
    """Make an account that may do everything."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "default"}}
    binding = {
        "apiVersion": f"{RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "default"}],
    }
    api.apply(account, binding)


def withdraw(api: Api, name: str) -> None:
    api.delete(f"{RBAC}/v1", "ClusterRoleBinding", name)
    api.delete("v1", "ServiceAccount", name, "default")


async def request(client: Client) -> None:
    await client.list(SERVERS)


async def watch(client: Client) -> None:
    running = Reflector(client, SERVERS, Store(lambda _namespace, _urgent: None))
    task = asyncio.create_task(running.run())
    try:
        await asyncio.wait_for(running.synced.wait(), 20)
    finally:
        task.cancel()


@pytest.mark.parametrize("act", [request, watch])
def test_an_expired_token_is_read_again(own: Cluster, mounted: Mounted, act: Act) -> None:
    authority = own.authority.certificate
    grant(own.api, "reader")
    mounted.put(own.short_token("default", "reader", seconds=-60), authority)
    access = Access(InCluster(mounted.folder, environment(own.url.rpartition(":")[2])))

    async def run() -> None:
        async with Client(access) as client:
            with pytest.raises(ApiError, match="Unauthorized"):
                await request(client)
            mounted.put(own.api.token("default", "reader"), authority)
            await act(client)

    asyncio.run(run())
    withdraw(own.api, "reader")


@pytest.mark.parametrize("act", [request, watch])
def test_an_authority_that_was_changed_is_read_again(own: Cluster, mounted: Mounted, act: Act) -> None:
    grant(own.api, "reader")
    token = own.api.token("default", "reader")
    mounted.put(token, Authority("another").certificate)
    access = Access(InCluster(mounted.folder, environment(own.url.rpartition(":")[2])))

    async def run() -> None:
        async with Client(access) as client:
            with pytest.raises(ApiError, match="did not answer"):
                await request(client)
            mounted.put(token, own.authority.certificate)
            await act(client)

    asyncio.run(run())
    withdraw(own.api, "reader")


def test_half_written_credentials_leave_the_old_in_force(own: Cluster, mounted: Mounted) -> None:
    authority = own.authority.certificate
    mounted.put("old", authority)
    access = Access(InCluster(mounted.folder, environment(1)))
    mounted.put("new", authority[:100])
    assert not access.refresh()
    assert access.current().token == "old"
    mounted.put("new", authority)
    assert access.refresh()
    assert access.current().token == "new"
    assert "new" not in repr(access.current())


def test_a_pods_token_and_authority_change_under_the_operator(
    own: Cluster, mounted: Mounted, tmp_path: Path, homeservers: Homeservers, servers: Servers
) -> None:
    api = own.api
    first, second = Authority("first"), Authority("second")
    grant(api, "pod-before")
    grant(api, "pod-after")
    mounted.put(api.token("default", "pod-before"), first.certificate)
    options = ("--kubeconfig", "", "--account", str(mounted.folder))
    with FaultProxy(own.kubeconfig, tmp_path, first) as proxy:
        pod = environment(proxy.port)
        with Operator(own.kubeconfig, tmp_path, homeservers.address, *options, environment=pod) as operator:
            server = servers.make()
            server.wait_ready()
            mounted.put(api.token("default", "pod-after"), second.certificate)
            proxy.change_authority(second)
            # Whoever goes on with the old token may do nothing any more.
            withdraw(api, "pod-before")
            carried_out(server, 60)
            assert operator.get("/livez").status_code == 200
            assert operator.process is not None
            assert operator.process.poll() is None
    withdraw(api, "pod-after")
