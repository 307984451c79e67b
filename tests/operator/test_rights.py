"""What the operator and Hearth may do in a cluster, and what nobody may: the chart of `platform/deploy`, for real."""

from __future__ import annotations

import json
import re
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest
import yaml

from provisioning.operator.children import KEEPS, KINDS
from tests.chart import values
from tests.cluster import tools
from tests.cluster.api import Api, ApiError
from tests.cluster.fixtures import need_programs
from tests.cluster.launch import Cluster
from tests.operator.homeservers import Homeservers
from tests.operator.installed import DEPLOY, SYSTEM, account, denied, install
from tests.operator.process import Operator
from tests.operator.servers import LABELS, SERVER, Servers, large, permit, small

pytestmark = pytest.mark.xdist_group("cluster-rights")

POLICY = ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding")


@pytest.fixture
def place(installed: Cluster) -> Iterator[str]:
    made = Servers(installed.api)
    yield made.place()
    made.remove()


def refused(call: object, *words: object, **options: object) -> str:
    """Call, and return the sentence with which the API server refuses."""
    with pytest.raises(ApiError) as caught:
        call(*words, **options)  # type: ignore[operator]
    assert caught.value.status in {403, 422}, caught.value
    return caught.value.message


def test_with_no_more_than_its_rights_the_operator_does_all_its_work(
    installed: Cluster, homeservers: Homeservers, tmp_path: Path
) -> None:
    made = Servers(installed.api)
    kubeconfig = account(installed, "hearth-operator", tmp_path)
    with Operator(kubeconfig, tmp_path, homeservers.address, administrator=installed.kubeconfig) as operator:
        try:
            for spec in (large(), small(network={"vpc": {"name": "alice", "cidr": "10.80.0.0/24"}})):
                server = made.make(spec)
                server.wait_ready()
                assert server.condition("Degraded")["status"] == "False", server.status()
            assert installed.api.get("kubeovn.io/v1", "Vpc", server.namespace)
            server.change(monitoring={"enabled": False})
            server.wait("Progressing", "False")
            permit(server.api, *SERVER, "synapse", server.namespace)
            server.api.delete(*SERVER, "synapse", server.namespace)
            server.api.wait("end of the server", lambda: server.api.get(*SERVER, "synapse", server.namespace) is None)
            server.api.wait("end of its network", lambda: not installed.api.list("kubeovn.io/v1", "Vpc"))
            assert "forbidden" not in operator.text().lower()
        finally:
            made.remove()


def test_the_operator_reads_no_secret(as_operator: Api, place: str) -> None:
    assert "secrets" in refused(as_operator.list, "v1", "Secret")
    assert "secrets" in refused(as_operator.list, "v1", "Secret", place)
    assert "secrets" in refused(as_operator.get, "v1", "Secret", "synapse-secrets", place)


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        ("v1", "Namespace"), ("v1", "Node"), ("v1", "Pod"), ("v1", "Secret"),
        ("rbac.authorization.k8s.io/v1", "Role"), ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition"), ("batch/v1", "Job"),
    ],
)  # fmt: skip
def test_the_operator_makes_nothing_that_is_not_its_business(
    as_operator: Api, place: str, version: str, kind: str
) -> None:
    found = {"apiVersion": version, "kind": kind, "metadata": {"name": "mallory", "namespace": place}}
    if kind in {"Namespace", "Node", "ClusterRoleBinding", "CustomResourceDefinition"}:
        del found["metadata"]["namespace"]  # type: ignore[attr-defined]
    refused(as_operator.apply, found)


@pytest.mark.parametrize(
    "kind", [("v1", "PersistentVolumeClaim"), ("postgresql.cnpg.io/v1", "Cluster"), SERVER, ("v1", "Namespace")]
)
def test_the_operator_deletes_nothing_that_holds_data(as_operator: Api, place: str, kind: tuple[str, str]) -> None:
    namespace = "" if kind[1] == "Namespace" else place
    assert "cannot delete" in refused(as_operator.delete, *kind, "postgres" if namespace else place, namespace)


@pytest.mark.parametrize("namespace", ["default", "kube-system", SYSTEM])
def test_the_operator_writes_only_where_servers_live(as_operator: Api, place: str, namespace: str) -> None:
    def configuration(where: str) -> dict[str, object]:
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": where}, "data": {}}

    assert "only in the namespaces of Matrix servers" in refused(as_operator.apply, configuration(namespace))
    as_operator.apply(configuration(place))


def test_hearth_writes_a_servers_secrets_and_can_not_read_them(as_hearth: Api, place: str) -> None:
    for name in ("synapse-secrets", "backup-secrets", "recovery-secrets"):
        meta = {"name": name, "namespace": place}
        as_hearth.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"macaroon": "x"}})
    refused(as_hearth.get, "v1", "Secret", "synapse-secrets", place)
    refused(as_hearth.list, "v1", "Secret")
    other = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "other", "namespace": place}}
    assert "three Secrets" in refused(as_hearth.apply, other)
    meta["namespace"] = "kube-system"
    assert "only the namespaces of Matrix servers" in refused(
        as_hearth.apply, {"apiVersion": "v1", "kind": "Secret", "metadata": meta}
    )


def test_hearth_deletes_no_other_namespace(as_hearth: Api, place: str) -> None:
    assert "only the namespaces" in refused(as_hearth.delete, "v1", "Namespace", SYSTEM)
    assert "only the namespaces" in refused(
        as_hearth.apply, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mine"}}
    )
    as_hearth.delete("v1", "Namespace", place)


def test_hearth_makes_servers_and_reads_their_status(as_hearth: Api, place: str) -> None:
    as_hearth.apply(values.matrix_server(small(), place))
    assert as_hearth.get(*SERVER, "synapse", place)
    refused(as_hearth.list, "v1", "ConfigMap", place)
    refused(as_hearth.list, "v1", "Pod", place)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ({"pod-security.kubernetes.io/enforce": "baseline"}, "always held to Pod Security 'restricted'"),
        ({"pod-security.kubernetes.io/enforce": None}, "always held to Pod Security 'restricted'"),
        ({"pod-security.kubernetes.io/warn": "privileged"}, "always held to Pod Security 'restricted'"),
        ({"pod-security.kubernetes.io/enforce-version": "v1.20"}, "newest Pod Security rules"),
        ({"hearth.host/server": None}, "hearth.host/server"),
        ({"hearth.host/organisation": "0" * 8}, "whose server this is"),
        ({"app.kubernetes.io/managed-by": None}, "whose server this is"),
    ],
)
def test_nobody_weakens_a_servers_namespace(
    installed: Cluster, place: str, labels: dict[str, str | None], sentence: str
) -> None:
    found = installed.api.get("v1", "Namespace", place)
    assert found is not None
    assert sentence in refused(installed.api.patch, found, {"metadata": {"labels": labels}})


def test_hearth_alone_says_who_lives_where(installed: Cluster, as_hearth: Api, as_operator: Api, place: str) -> None:
    found = installed.api.get("v1", "Namespace", place)
    assert found is not None
    other = str(uuid.uuid4())
    for labels in ({"hearth.host/server": other}, {"hearth.host/coming": other}):
        change = {"metadata": {"labels": labels}}
        assert "whose server this is" in refused(installed.api.patch, found, change)
        assert "cannot patch" in refused(as_operator.patch, found, change)
        as_hearth.patch(found, change)
    for name in ("mallory", None):
        named = {"metadata": {"labels": {"hearth.host/server": name}}}
        assert "the server's id" in refused(as_hearth.patch, found, named)
    organisation = {"metadata": {"labels": {"hearth.host/organisation": other}}}
    assert "whose server this is" in refused(as_hearth.patch, found, organisation)
    server = values.matrix_server(small(), place)
    server["metadata"]["labels"] = {"hearth.host/server": str(uuid.uuid4())}
    assert "id of its own namespace" in refused(as_hearth.apply, server)
    server["metadata"]["labels"] = {"hearth.host/server": other}
    as_hearth.apply(server)


@pytest.mark.parametrize("name", ["x", "00000000-0000-0000-0000-00000000000g"])
def test_a_servers_namespace_has_a_servers_id(installed: Cluster, name: str) -> None:
    labels = {**LABELS, "hearth.host/server": name}
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"hearth-{name}", "labels": labels}}
    assert "the server's id" in refused(installed.api.apply, made)


def test_what_the_alert_rules_ask_the_operator_tells(
    installed: Cluster, homeservers: Homeservers, tmp_path: Path
) -> None:
    api = installed.api
    rule = api.get("monitoring.coreos.com/v1", "PrometheusRule", "hearth-operator", SYSTEM)
    monitor = api.get("monitoring.coreos.com/v1", "ServiceMonitor", "hearth-operator", SYSTEM)
    service = api.get("v1", "Service", "hearth-operator", SYSTEM)
    assert rule is not None
    assert monitor is not None
    assert service is not None
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert {each["port"] for each in monitor["spec"]["endpoints"]} <= {
        each["name"] for each in service["spec"]["ports"]
    }
    for each in rule["spec"]["groups"][0]["rules"]:
        promql_parser.parse(each["expr"])
    asked = set(re.findall(r"hearth_operator_\w+", json.dumps(rule["spec"])))
    kubeconfig = account(installed, "hearth-operator", tmp_path)
    with Operator(kubeconfig, tmp_path, homeservers.address, administrator=installed.kubeconfig) as operator:
        (path,) = {each["path"] for each in monitor["spec"]["endpoints"]}
        told = operator.get(path).text
    assert asked
    assert {name for name in asked if f"\n{name} " not in told} == set()


@pytest.mark.parametrize("way", ["status", "finalize"])
def test_a_subresource_is_no_way_round(installed: Cluster, place: str, way: str) -> None:
    """The API server takes new labels by these ways as well."""
    found = installed.api.get("v1", "Namespace", place)
    assert found is not None
    found["metadata"].pop("managedFields", None)
    found["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "privileged"
    path = installed.api.path("v1", "Namespace", None, place)
    sentence = refused(installed.api.request, "PUT", f"{path}/{way}", json=found)
    assert "always held to Pod Security 'restricted'" in sentence


def test_a_weak_namespace_from_before_can_still_end(installed: Cluster) -> None:
    name = "hearth-22222222-2222-3333-4444-555555555555"
    api = installed.api
    api.delete(*POLICY, "hearth-namespaces")
    api.wait("policy out of force", lambda: not denied(api))
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    install(installed)
    api.wait("policies in force", lambda: denied(api))
    permit(api, "v1", "Namespace", name)
    api.delete("v1", "Namespace", name)
    api.wait("end of the namespace", lambda: api.get("v1", "Namespace", name) is None)


def test_a_server_in_a_foreign_namespace_from_before_can_still_end(
    installed: Cluster, homeservers: Homeservers, tmp_path: Path
) -> None:
    api, name = installed.api, "elsewhere"
    for each in ("hearth-servers", "hearth-namespaces"):
        api.delete(*POLICY, each)
    api.wait("policy out of force", lambda: not denied(api))
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    found = values.matrix_server(small(), name)
    found["metadata"]["finalizers"] = ["hearth.host/final-backup"]
    api.wait("a server from before", lambda: _made(api, found))
    install(installed)
    api.wait("policies in force", lambda: denied(api) and not _changes(api, name))
    with Operator(
        account(installed, "hearth-operator", tmp_path),
        tmp_path,
        homeservers.address,
        administrator=installed.kubeconfig,
    ):
        assert api.get(*SERVER, "synapse", name)
        api.delete(*SERVER, "synapse", name)
        api.wait("end of the server", lambda: api.get(*SERVER, "synapse", name) is None)
    api.delete("v1", "Namespace", name)


def _made(api: Api, found: dict[str, object]) -> bool:
    try:
        api.apply(found)
    except ApiError:
        return False
    return True


def _changes(api: Api, namespace: str) -> bool:
    """Say whether a server may still be changed there."""
    server = api.get(*SERVER, "synapse", namespace)
    assert server is not None
    try:
        api.patch(server, {"spec": {"restarts": int(server["spec"].get("restarts") or 0) + 1}})
    except ApiError as error:
        return "in no other" not in error.message
    return True


@pytest.mark.parametrize("kind", ["Vpc", "Subnet"])
def test_the_operator_leaves_the_clusters_own_networks_alone(
    installed: Cluster, as_operator: Api, place: str, kind: str
) -> None:
    spec = {"cidrBlock": "10.80.0.0/24"} if kind == "Subnet" else {}
    own = {"apiVersion": "kubeovn.io/v1", "kind": kind, "metadata": {"name": "ovn-default"}, "spec": spec}
    assert "only the networks of Matrix servers" in refused(as_operator.apply, own)
    installed.api.apply(own)
    assert "only the networks of Matrix servers" in refused(as_operator.apply, own)
    assert "only the networks" in refused(as_operator.delete, "kubeovn.io/v1", kind, "ovn-default")
    stolen = {**own, "metadata": {"name": place}, "spec": {**spec, "namespaces": ["kube-system"]}}
    assert "that server's namespace alone" in refused(as_operator.apply, stolen)
    installed.api.delete("kubeovn.io/v1", kind, "ovn-default")


def test_nobody_makes_a_weak_namespace_with_a_servers_name(installed: Cluster) -> None:
    meta = {"name": "hearth-11111111-2222-3333-4444-555555555555"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": meta}
    assert "restricted" in refused(installed.api.apply, namespace)
    other = {"name": "elsewhere", "labels": {**LABELS, "hearth.host/server": meta["name"].removeprefix("hearth-")}}
    assert "called 'hearth-'" in refused(installed.api.apply, {**namespace, "metadata": other})


def test_a_server_lives_only_in_its_own_namespace(installed: Cluster, place: str) -> None:
    assert "no other" in refused(installed.api.apply, values.matrix_server(small(), "default"))
    stolen = small(organisation="00000000-0000-0000-0000-000000000000")
    assert "another organisation" in refused(installed.api.apply, values.matrix_server(stolen, place))


def test_nobody_gives_a_server_out_for_another(installed: Cluster, as_hearth: Api, place: str) -> None:
    labels = {"hearth.host/server": place.removeprefix("hearth-")}
    server = values.matrix_server(small(), place)
    server["metadata"]["labels"] = {"hearth.host/server": "00000000-0000-0000-0000-000000000000"}
    assert "its own namespace" in refused(as_hearth.apply, server)
    server["metadata"]["labels"] = labels
    as_hearth.apply(server)
    for api in (as_hearth, installed.api):
        for label in ("00000000-0000-0000-0000-000000000000", "", None):
            change = {"metadata": {"labels": {"hearth.host/server": label}}}
            assert "its own namespace" in refused(api.patch, server, change)
    as_hearth.patch(server, {"spec": {"restarts": 1}})


def test_the_role_is_made_of_the_kinds_that_the_operator_manages() -> None:
    rules = next(
        each
        for each in yaml.safe_load_all(rendered())
        if each["kind"] == "ClusterRole" and each["metadata"]["name"] == "hearth-operator"
    )["rules"]
    made = {"list", "watch", "create", "patch"}
    granted = {
        (group, kind): set(rule["verbs"]) for rule in rules if made <= set(rule["verbs"]) for group in rule["apiGroups"]
        for kind in rule["resources"]
    }  # fmt: skip
    wanted = {(kind.group, kind.plural): made if kind.name in KEEPS else {*made, "delete"} for kind in KINDS.values()}
    assert granted == wanted


def rendered(*options: str) -> str:
    """Return the chart's documents."""
    need_programs()
    words = [
        "template",
        "hearth",
        str(DEPLOY),
        "--namespace",
        SYSTEM,
        "--set",
        "operator.image=images.example/hearth:1",
    ]
    done = subprocess.run([str(tools.find("helm")), *words, *options], check=True, capture_output=True, text=True)
    return done.stdout
