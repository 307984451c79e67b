"""A cluster starts whole, survives what a test does to it, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from kubernetes.client import ApiClient, CoreV1Api

from tests.bench.floor import free_ports
from tests.cluster import launch, tools
from tests.cluster.api import Api, ApiError, Object
from tests.cluster.fixtures import need_programs
from tests.cluster.launch import Cluster
from tests.stack import alive

pytestmark = pytest.mark.xdist_group("cluster")
ROOT = Path(__file__).resolve().parents[2]
# A crash leaves more behind than an end that was asked for.
ENDS = [pytest.param(signal.SIGTERM, marks=pytest.mark.long), signal.SIGKILL]


def config_map(name: str, namespace: str = "default") -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": {"says": name},
    }


def pod(name: str, namespace: str, **security: object) -> Object:
    container = {"name": "main", "image": "images.example/none", "securityContext": security}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [container]},
    }


def test_it_says_its_version(api: Api) -> None:
    assert api.request("GET", "/version")["gitVersion"] == tools.KUBERNETES


def test_kubernetes_own_client(kubernetes_client: ApiClient, namespace: str) -> None:
    found = CoreV1Api(kubernetes_client).list_namespace().items
    names = [each.metadata.name for each in found if each.metadata]
    assert namespace in names


def test_helm_finds_the_version_it_asks_for(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: one\nversion: 0.1.0\nkubeVersion: '>=1.30'\n")
    (tmp_path / "templates" / "one.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: by-helm}\n")
    words = ["--kubeconfig", str(cluster.kubeconfig), "-n", namespace, "install", "one", str(tmp_path)]
    done = subprocess.run([tools.find("helm"), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert cluster.api.get("v1", "ConfigMap", "by-helm", namespace)


def run_pods(api: Api, namespace: str, name: str) -> Object:
    """Make a Deployment, wait until its pods are ready, and return it."""
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [{"name": "main", "image": "images.example/none"}]},
    }
    deployment: Object = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": name}}, "template": template},
    }
    api.apply(deployment)
    api.wait("ready replicas", lambda: api.read(deployment).get("status", {}).get("readyReplicas") == 2)
    return deployment


def test_pods_run_on_nodes_that_nobody_has(api: Api, namespace: str) -> None:
    run_pods(api, namespace, "one")
    api.delete("apps/v1", "Deployment", "one", namespace)
    api.wait("end of the pods", lambda: not api.list("v1", "Pod", namespace))


def test_pod_security_is_enforced(api: Api, new_namespace: Callable[..., str]) -> None:
    namespace = new_namespace(**{"pod-security.kubernetes.io__enforce": "restricted"})
    with pytest.raises(ApiError, match="violates PodSecurity") as refusal:
        api.apply(pod("bad", namespace, privileged=True))
    assert refusal.value.status == 403


def test_admission_policies_are_enforced(api: Api, namespace: str) -> None:
    group = "admissionregistration.k8s.io/v1"
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}
    policy = {
        "apiVersion": group,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": namespace},
        "spec": {
            "matchConstraints": {"resourceRules": [rule]},
            "validations": [{"expression": "object.metadata.name != 'bad'", "message": "not this one"}],
        },
    }
    binding = {
        "apiVersion": group,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": namespace},
        "spec": {
            "policyName": namespace,
            "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": selector},
        },
    }
    api.apply(policy, binding)
    try:
        api.wait("refusal", lambda: _refused(api, config_map("bad", namespace)))
        api.apply(config_map("good", namespace))
    finally:
        api.delete(group, "ValidatingAdmissionPolicyBinding", namespace)
        api.delete(group, "ValidatingAdmissionPolicy", namespace)


def _refused(api: Api, each: Object) -> bool:
    try:
        api.apply(each)
    except ApiError as error:
        return "not this one" in error.message
    api.delete("v1", "ConfigMap", "bad", each["metadata"]["namespace"])
    return False


def test_tokens_of_service_accounts(cluster: Cluster, namespace: str) -> None:
    tokens = {cluster.api.token(namespace, "default"): 403}  # known, and without rights
    if isinstance(cluster, Cluster):
        tokens |= {cluster.short_token(namespace, "default", seconds=60): 403}
        tokens |= {cluster.short_token(namespace, "default", seconds=-60): 401}  # over
    for token, status in tokens.items():
        with cluster.api.with_token(token) as somebody, pytest.raises(ApiError) as refusal:
            somebody.list("v1", "Secret", namespace)
        assert refusal.value.status == status


@pytest.mark.parametrize("end", ENDS)
def test_the_api_server_comes_back_with_its_data(cluster: Cluster, namespace: str, end: signal.Signals) -> None:
    cluster.api.apply(config_map("kept", namespace))
    cluster.stop_api_server(end)
    assert not cluster.api.ready()
    cluster.start_api_server()
    found = cluster.api.get("v1", "ConfigMap", "kept", namespace)
    assert found is not None
    assert found["data"] == {"says": "kept"}
    # And with all that follows it: controllers, scheduler, kwok.
    run_pods(cluster.api, namespace, "after")
    assert [name for name, process in cluster.processes.items() if process.poll() is not None] == []


@pytest.mark.long
def test_two_at_once_know_nothing_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    need_programs()
    with Cluster(nodes=0) as one:
        # The second one's first choice is the first one's port, as if it had been taken after the look.
        ports = iter([one.port, *free_ports(1)])
        monkeypatch.setattr(launch, "free_ports", lambda _: [next(ports)])
        with Cluster(nodes=0) as other:
            one.api.apply(config_map("one"))
            assert other.api.get("v1", "ConfigMap", "one", "default") is None
            folders = [one.folder, other.folder]
            family = [psutil.Process(each.pid) for both in (one, other) for each in both.processes.values()]
    assert not alive(family)
    assert not any(folder.exists() for folder in folders)


def test_a_program_that_does_not_start_says_why(own_cluster: Cluster) -> None:
    own_cluster._programs["etcd"] = ["/bin/false"]
    own_cluster._programs["kube-apiserver"] = ["/bin/sh", "-c", "echo the disk is full >&2; exit 3", "sh"]
    with pytest.raises(RuntimeError, match="the disk is full"), own_cluster:
        pass
    assert not own_cluster.folder.exists()


@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_its_owner_is_the_end_of_all(end: signal.Signals) -> None:
    need_programs()
    owner = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster", "--nodes", "1"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert owner.stdout is not None
        line = next(line for line in owner.stdout if line.startswith("export KUBECONFIG="))
        kubeconfig = Path(line.strip().partition("=")[2])
        with Api.from_kubeconfig(kubeconfig) as api:
            assert api.ready()
        family = psutil.Process(owner.pid).children(recursive=True)
        assert len(family) == len(tools.CLUSTER) + 1
        owner.send_signal(end)
        owner.wait(60)
        limit = time.monotonic() + 60
        while alive(family) and time.monotonic() < limit:
            time.sleep(0.05)
        assert not alive(family)
    finally:
        owner.kill()
        owner.wait()
        if owner.stdout is not None:
            owner.stdout.close()
    if end == signal.SIGKILL:  # it could not clean up: the next start does
        assert kubeconfig.parent.exists()
        launch.sweep()
    assert not kubeconfig.parent.exists()
