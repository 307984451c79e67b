"""Who may remove what holds customers' data: Hearth, and others only after they said so on the object itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chart import values
from tests.cluster.api import Api, ApiError
from tests.cluster.launch import Cluster
from tests.operator.installed import account
from tests.operator.servers import SERVER, Servers, permit, small
from tests.operator.test_rights import refused, rendered

pytestmark = pytest.mark.xdist_group("cluster-rights")

DEFINITION = ("apiextensions.k8s.io/v1", "CustomResourceDefinition", "matrixservers.hearth.host")
SAID = "Delete the server in Hearth"


@pytest.fixture
def made(installed: Cluster) -> Iterator[str]:
    """A server's namespace with a MatrixServer in it."""
    servers = Servers(installed.api)
    yield servers.make(small()).namespace
    servers.remove()


@pytest.mark.parametrize(
    "target", [lambda name: (*SERVER, "synapse", name), lambda name: ("v1", "Namespace", name), lambda _: DEFINITION]
)
def test_an_administrator_removes_nothing_by_chance(
    installed: Cluster, made: str, target: Callable[[str], tuple[str, ...]]
) -> None:
    assert SAID in refused(installed.api.delete, *target(made))
    assert installed.api.get(*SERVER, "synapse", made)


def test_nor_all_of_them_at_once(installed: Cluster, made: str) -> None:
    path = installed.api.path(*SERVER, made)
    assert SAID in refused(installed.api.request, "DELETE", path)
    assert installed.api.get(*SERVER, "synapse", made)


def test_another_account_with_all_rights_does_not_either(installed: Cluster, made: str, tmp_path: Path) -> None:
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    kind = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding"}
    subject = {"kind": "ServiceAccount", "name": "hearth-operator", "namespace": "hearth"}
    installed.api.apply({**kind, "metadata": {"name": "too-much"}, "roleRef": role, "subjects": [subject]})
    api = Api.from_kubeconfig(account(installed, "hearth-operator", tmp_path))
    try:
        for target in ((*SERVER, "synapse", made), ("v1", "Namespace", made), DEFINITION):
            refused(api.delete, *target)
        assert installed.api.get(*SERVER, "synapse", made)
    finally:
        api.close()
        installed.api.delete(*(kind["apiVersion"], kind["kind"]), "too-much")


def test_hearth_removes_a_server_and_its_namespace(installed: Cluster, as_hearth: Api, made: str) -> None:
    as_hearth.delete(*SERVER, "synapse", made)
    as_hearth.delete("v1", "Namespace", made)
    _gone(installed.api, made)


def test_who_says_so_on_the_namespace_removes_all_that_is_in_it(installed: Cluster, made: str) -> None:
    permit(installed.api, "v1", "Namespace", made)
    installed.api.delete("v1", "Namespace", made)
    _gone(installed.api, made)


def test_who_says_so_on_the_server_removes_it(installed: Cluster, made: str) -> None:
    permit(installed.api, *SERVER, "synapse", made)
    installed.api.delete(*SERVER, "synapse", made)
    installed.api.wait("end of it", lambda: installed.api.get(*SERVER, "synapse", made) is None)
    assert SAID in refused(installed.api.delete, "v1", "Namespace", made)


def test_other_namespaces_and_definitions_are_nobodys_business(installed: Cluster) -> None:
    api = installed.api
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "hearth-x"}})
    api.delete("v1", "Namespace", "hearth-x")
    api.wait("end of it", lambda: api.get("v1", "Namespace", "hearth-x") is None)
    api.request("DELETE", api.path(*DEFINITION[:2], None, "poolers.postgresql.cnpg.io"), params={"dryRun": "All"})


def test_it_can_be_switched_off() -> None:
    assert "hearth-removal" in rendered()
    assert "hearth-removal" not in rendered("--set", "protection.enabled=false")


def _gone(api: Api, namespace: str) -> None:
    # No operator runs here, which would take its finalizer away.
    def ended() -> bool:
        found = api.get(*SERVER, "synapse", namespace)
        if found is not None and found["metadata"].get("finalizers"):
            with contextlib.suppress(ApiError):  # gone in between
                api.patch(found, {"metadata": {"finalizers": None}})
        return api.get("v1", "Namespace", namespace) is None

    api.wait("end of the namespace", ended)


def test_a_server_without_an_end_can_be_asked_again(installed: Cluster, as_hearth: Api, made: str) -> None:
    api = installed.api
    found = api.get(*SERVER, "synapse", made)
    assert found is not None
    api.patch(found, {"metadata": {"finalizers": ["hearth.host/final-backup"]}})
    as_hearth.delete(*SERVER, "synapse", made)
    api.delete(*SERVER, "synapse", made)
    api.patch(values.matrix_server(small(), made), {"metadata": {"finalizers": None}})
    api.wait("end of it", lambda: api.get(*SERVER, "synapse", made) is None)
