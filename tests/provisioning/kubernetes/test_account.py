"""The account of Hearth's own pod, by the files that a kubelet keeps there; no answer has a Secret in it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from provisioning import clusters
from provisioning.models import Cluster, ServerSecret
from provisioning.providers.base import ProviderError
from provisioning.providers.kubernetes import client
from tenants.models import Server
from tenants.releases import newest
from tests.cluster.api import Api
from tests.operator.process import Operator
from tests.provisioning.kubernetes.conftest import BASE
from tests.provisioning.kubernetes.test_life import carry_out

if TYPE_CHECKING:
    from tests.cluster.launch import Cluster as TestCluster

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.xdist_group("cluster")]


class Pod:
    """The files and variables of a pod's account."""

    def __init__(self, folder: Path, authority: bytes) -> None:
        self.token, self.authority = folder / "token", folder / "ca.crt"
        self.authority.write_bytes(authority)

    def give(self, token: str) -> None:
        """Put a token there, as a kubelet does: whole at any moment."""
        following = self.token.with_suffix(".new")
        following.write_text(token)
        following.rename(self.token)


@pytest.fixture
def pod(cluster: TestCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pod:
    """Let this process look like a pod of the cluster, without a token yet."""
    made = Pod(tmp_path, (cluster.kubeconfig.parent / "ca.crt").read_bytes())
    address = urlsplit(cluster.api.http.base_url.__str__())
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(address.hostname))
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(address.port))
    monkeypatch.setattr(client, "SERVICE_TOKEN_FILENAME", str(made.token))
    monkeypatch.setattr(client, "SERVICE_CERT_FILENAME", str(made.authority))
    return made


@pytest.fixture
def administrator(api: Api, namespace: str) -> str:
    """An account with all rights; its namespace."""
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": namespace}
    kind = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": namespace}}
    api.apply({**kind, "roleRef": role, "subjects": [subject]})
    return namespace


def in_cluster(make_region: Callable[..., Cluster]) -> Cluster:
    made = make_region()
    return clusters.change(actor="staff", cluster=made, in_cluster=True)


@pytest.mark.usefixtures("operator")
def test_it_works(
    pod: Pod,
    administrator: str,
    api: Api,
    make_region: Callable[..., Cluster],
    make_server: Callable[..., Server],
) -> None:
    pod.give(api.token(administrator, "default"))
    region = in_cluster(make_region).region
    assert Cluster.objects.get().kubeconfig is None
    server = make_server("lime", region=region.code, server_name=f"lime.{BASE}", version=newest().version)
    carry_out(server)
    assert str(server.pk) in clusters.provider_of(region).observe()
    carry_out(server, desired="deleted")


def test_a_new_token_on_disk_is_taken(pod: Pod, administrator: str, cluster: TestCluster, api: Api) -> None:
    pod.give(cluster.short_token(administrator, "default", seconds=-120))
    mine = client.connect(None)
    with pytest.raises(ProviderError, match="does not accept Hearth's credentials") as caught:
        mine.get("/api/v1/namespaces/default")
    assert caught.value.code == "RegionCredentials"
    pod.give(api.token(administrator, "default"))
    # No minute has passed, and nobody made a new connection: the refusal itself lets the file be read again.
    assert mine.get("/api/v1/namespaces/default")
    mine.close()


def test_files_that_are_missing_are_told(pod: Pod, administrator: str, api: Api) -> None:
    with pytest.raises(ProviderError, match="Service token file does not exist") as caught:
        client.connect(None)
    assert caught.value.code == "RegionCredentials"
    pod.give(api.token(administrator, "default"))
    mine = client.connect(None)
    mine._patience = 0.5
    assert mine.get("/api/v1/namespaces/default")
    assert mine._renew is not None
    mine._renew()
    pod.token.write_text("")
    with pytest.raises(ProviderError, match="can't read the account of its own pod"):
        mine.get("/api/v1/namespaces/default")
    mine.close()


def test_outside_of_a_cluster_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ProviderError, match="Staff can give the region a kubeconfig"):
        client.connect(None)


def test_no_answer_of_the_cluster_has_a_secret_in_it(
    server: Server, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[tuple[str, str]] = []
    once = client.Client._once

    def listening(self: client.Client, *words: Any) -> tuple[int, Mapping[str, str], str]:
        found = once(self, *words)
        answers.append((words[1], found[2]))
        return found

    monkeypatch.setattr(client.Client, "_once", listening)
    carry_out(server)
    carry_out(server, users=7)
    ours = [json.loads(text) for path, text in answers if "/secrets" in path]
    kinds = [each["kind"] for each in ours if each.get("kind") != "Status"]
    assert len(kinds) >= 4, "made and settled, then looked at and applied"
    assert set(kinds) == {"PartialObjectMetadata"}
    said = "".join(text for _, text in answers)
    for kept in ServerSecret.objects.filter(server=server):
        word = str(kept.value)
        assert word not in said
        assert base64.b64encode(word.encode()).decode() not in said
