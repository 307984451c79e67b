"""Hearth's way into a cluster by a kubeconfig: what is secret in it is in memory alone."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from provisioning.operator.kube.access import Kubeconfig
from provisioning.providers.base import ProviderError
from provisioning.providers.kubernetes.client import connect
from tests.provisioning.kubernetes.conftest import inline

if TYPE_CHECKING:
    from tests.cluster.launch import Cluster as TestCluster

pytestmark = pytest.mark.xdist_group("cluster")


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where this process would make temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert Path(tempfile.gettempdir()) == tmp_path
    return tmp_path


def test_a_clients_key_is_never_in_a_file(cluster: TestCluster, temporary: Path) -> None:
    kubeconfig = inline(cluster.kubeconfig)
    assert yaml.safe_load(kubeconfig)["users"][0]["user"]["client-key-data"]
    client = connect(kubeconfig)
    try:
        assert client.request("GET", "/version")["gitVersion"]
        assert client.get("/api/v1/namespaces/default") is not None
    finally:
        client.close()
    assert Kubeconfig(cluster.kubeconfig).load().context is not None
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("key", ["certificate-authority-data", "client-certificate-data", "client-key-data"])
@pytest.mark.parametrize(
    "value", ["no base64", base64.b64encode(b"no certificate").decode(), base64.b64encode(b"\xff").decode()]
)
def test_what_is_no_certificate_is_said_and_not_quoted(cluster: TestCluster, key: str, value: str) -> None:
    whole: dict[str, Any] = yaml.safe_load(inline(cluster.kubeconfig))
    part = whole["clusters"][0]["cluster"] if key.startswith("certificate-authority") else whole["users"][0]["user"]
    part[key] = value
    with pytest.raises(ProviderError, match="it can't be understood") as refused:
        connect(yaml.safe_dump(whole))
    assert refused.value.code == "RegionCredentials"
    assert value not in str(refused.value)
