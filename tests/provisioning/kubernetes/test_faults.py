"""What a customer and the staff see when the cluster is away, busy, wrong, or somebody else's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from django.db import connection

from provisioning import clusters, engine, observer, services
from provisioning.models import Cluster, Operation, Region, ServerStatus
from provisioning.providers.base import ProviderError, StaleFence
from provisioning.providers.kubernetes import objects
from provisioning.providers.kubernetes.client import connect
from provisioning.providers.kubernetes.provider import KubernetesProvider
from provisioning.providers.kubernetes.writing import FENCE, Writer, paths
from tenants.models import Server
from tests.cluster.api import Api
from tests.cluster.faults import FaultProxy
from tests.operator.process import Operator
from tests.provisioning.kubernetes.conftest import SERVER, inline
from tests.provisioning.kubernetes.pods import Pods
from tests.provisioning.kubernetes.test_life import becomes
from tests.provisioning.kubernetes.test_objects import PLACE, SPEC

if TYPE_CHECKING:
    from tests.cluster.launch import Cluster as TestCluster

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.xdist_group("cluster")]


def carry_out(server: Server) -> Operation:
    """Do what is due, as often as it is handed back."""
    made = services.reconcile(server.pk)
    operation = made or Operation.objects.filter(server=server).latest("created")
    for _ in range(12):
        engine.run(operation.pk)
        operation.refresh_from_db()
        if operation.state not in Operation.OPEN:
            break
        Operation.objects.filter(pk=operation.pk).update(run_after=operation.created)
    return operation


def place(server: Server) -> str:
    return f"hearth-{server.pk}"


@pytest.fixture
def proxied(make_region: Callable[..., Cluster], fault_proxy: FaultProxy, api: Api, namespace: str) -> Region:
    """The cluster as a region, with faults in between."""
    account = {"kind": "ServiceAccount", "name": "default", "namespace": namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": namespace},
    }
    api.apply({**binding, "roleRef": role, "subjects": [account]})
    return make_region(inline(fault_proxy.kubeconfig(api.token(namespace, "default")))).region


@pytest.fixture
def far(make_server: Callable[..., Server], proxied: Region) -> Server:
    """One wanted server there."""
    return make_server("far", region=proxied.code, server_name="far.region.example", version=SPEC.version)


def test_the_api_server_goes_away_in_the_middle(
    far: Server, fault_proxy: FaultProxy, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()
    settled = KubernetesProvider._settled

    def at_last(self: KubernetesProvider, *words: Any) -> None:
        held.set()
        settled(self, *words)

    monkeypatch.setattr(KubernetesProvider, "_settled", at_last)

    def interrupt() -> None:
        assert held.wait(60)
        with fault_proxy.down():
            time.sleep(1)

    thread = threading.Thread(target=interrupt)
    thread.start()
    operation = carry_out(far)
    thread.join()
    assert operation.state == "succeeded", operation.error
    becomes(far, "ready")


@pytest.mark.parametrize("status", [429, 503, 0])
def test_what_passes_by_itself_is_waited_out(
    far: Server, fault_proxy: FaultProxy, operator: Operator, status: int
) -> None:
    fault_proxy.refuse(status, verbs="patch create", times=3, retry_after=1)
    assert carry_out(far).state == "succeeded"


def test_a_list_that_grew_too_old_begins_anew(far: Server, fault_proxy: FaultProxy, operator: Operator) -> None:
    assert carry_out(far).state == "succeeded"
    fault_proxy.refuse(410, verbs="list", path="matrixservers", times=1)
    assert str(far.pk) in clusters.provider_of(Region.objects.get()).observe()


def test_an_observer_that_can_not_ask_says_so(
    far: Server, fault_proxy: FaultProxy, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert carry_out(far).state == "succeeded"
    monkeypatch.setattr("provisioning.providers.kubernetes.provider.GLANCE", 1.0)
    with fault_proxy.down():
        observer.observe()
    found = ServerStatus.objects.get(server=far)
    assert (found.phase, found.reason) == ("degraded", "ProviderUnreachable")
    assert "does not answer" in found.message
    becomes(far, "ready")


def test_an_expired_token(
    cluster: TestCluster,
    namespace: str,
    make_region: Callable[..., Cluster],
    make_server: Callable[..., Server],
    operator: Operator,
) -> None:
    config = yaml.safe_load(inline(cluster.kubeconfig))
    token = cluster.short_token(namespace, "default", seconds=-120)
    config["users"][0]["user"] = {"token": token}
    region = make_region(yaml.safe_dump(config)).region
    server = make_server(region=region.code, version=SPEC.version)
    operation = carry_out(server)
    assert (operation.state, operation.error_code) == ("failed", "RegionCredentials")
    assert "Staff must renew them" in operation.error
    assert token not in f"{operation.error}{list(operation.events.values_list('message', flat=True))}"
    # Renewed by the staff's verb, the same operation goes on.
    clusters.change(actor="staff", cluster=Cluster.objects.get(), kubeconfig=inline(cluster.kubeconfig))
    services.retry_operation("staff", operation=operation)
    assert carry_out(server).state == "succeeded"


def test_an_account_with_no_rights(
    cluster: TestCluster,
    api: Api,
    namespace: str,
    make_region: Callable[..., Cluster],
    make_server: Callable[..., Server],
) -> None:
    config = yaml.safe_load(inline(cluster.kubeconfig))
    config["users"][0]["user"] = {"token": api.token(namespace, "default")}
    region = make_region(yaml.safe_dump(config)).region
    operation = carry_out(make_server(region=region.code, version=SPEC.version))
    assert (operation.state, operation.error_code) == ("failed", "RegionForbidden")
    assert "It says: Hearth may not get namespaces." in operation.error
    assert "system:" not in operation.error


def test_a_namespace_that_is_not_ours(server: Server, api: Api) -> None:
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": place(server), "labels": {"a": "b"}}})
    operation = carry_out(server)
    assert (operation.state, operation.error_code) == ("failed", "NamespaceTaken")
    assert "Hearth did not make. Nothing in it was touched" in operation.error
    Server.objects.filter(pk=server.pk).update(desired="deleted", generation=2)
    assert carry_out(server).state == "succeeded"
    kept = api.get("v1", "Namespace", place(server))
    assert kept is not None
    assert kept["metadata"]["labels"]["a"] == "b"
    assert "deletionTimestamp" not in kept["metadata"]
    assert FENCE not in (kept["metadata"].get("annotations") or {})


def test_a_quota_of_the_cluster(server: Server, api: Api) -> None:
    api.apply(objects.namespace(_spec(server)))
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full", "namespace": place(server)}}
    # Not of MatrixServers: those are counted only when the controller has next looked for new kinds, each 30 s.
    api.apply({**quota, "spec": {"hard": {"count/secrets": "0"}}})
    operation = carry_out(server)
    assert (operation.state, operation.error_code) == ("failed", "QuotaExceeded"), operation.error
    assert "leaves no room" in operation.error


def test_a_spec_that_the_cluster_refuses(server: Server, api: Api) -> None:
    Server.objects.filter(pk=server.pk).update(vcpu=300)
    server.refresh_from_db()
    operation = carry_out(server)
    assert (operation.state, operation.error_code) == ("failed", "SpecRefused")
    assert "256" in operation.error


def test_another_signing_key_is_never_written(server: Server, api: Api, operator: Operator) -> None:
    assert carry_out(server).state == "succeeded"
    before = api.get("v1", "Secret", "synapse-secrets", place(server))
    foreign = objects.matrix_server(SPEC, PLACE)["spec"]["secret"]["signingKeyId"]
    found = api.get(*SERVER, place(server))
    assert found is not None
    api.patch(found, {"spec": {"secret": {"signingKeyId": foreign}}})
    Server.objects.filter(pk=server.pk).update(users=7, generation=2)
    server.refresh_from_db()
    operation = carry_out(server)
    assert (operation.state, operation.error_code) == ("failed", "SigningKeyMismatch")
    assert api.get("v1", "Secret", "synapse-secrets", place(server)) == before


def test_a_removal_that_does_not_end_is_told_in_words(
    server: Server, api: Api, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert carry_out(server).state == "succeeded"
    meta = {"name": "held", "namespace": place(server)}
    claim = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}
    api.apply({**claim, "metadata": {**meta, "finalizers": ["example.org/keep"]}})
    monkeypatch.setattr(clusters.provider_of(Region.objects.get()), "_removal", 3.0)
    monkeypatch.setattr(engine, "MAX_ATTEMPTS", 1)
    Server.objects.filter(pk=server.pk).update(desired="deleted", generation=2)
    operation = carry_out(server)
    end = time.monotonic() + 60
    while "example.org/keep" not in operation.error:  # on a busy machine it takes longer until that alone is left
        assert time.monotonic() < end, operation.error
        services.retry_operation("staff", operation=operation)
        operation = carry_out(server)
    assert (operation.state, operation.error_code) == ("failed", "RemovalStuck")
    assert "support must look into the cluster" in operation.error
    api.patch(claim, {"metadata": {"finalizers": None}})
    monkeypatch.setattr(clusters.provider_of(Region.objects.get()), "_removal", 300.0)
    services.retry_operation("staff", operation=operation)
    assert carry_out(server).state == "succeeded"
    assert api.get("v1", "Namespace", place(server)) is None


def test_a_worker_that_lost_its_lease_changes_nothing(server: Server, api: Api, operator: Operator) -> None:
    assert carry_out(server).state == "succeeded"
    provider, spec = clusters.provider_of(Region.objects.get()), _spec(server)
    fence = Operation.objects.get().fence + 5
    provider.ensure_storage(spec, fence=fence, progress=lambda _: None)
    provider.configure(spec, fence=fence, progress=lambda _: None)
    before = _marks(api, server)
    late: list[Callable[[], object]] = [
        lambda: provider.ensure_storage(spec, fence=fence - 1, progress=lambda _: None),
        lambda: provider.configure(spec, fence=fence - 1, progress=lambda _: None),
        lambda: provider.start(spec, fence=fence - 1, progress=lambda _: None),
        lambda: provider.stop(spec.server_id, fence=fence - 1, progress=lambda _: None),
        lambda: provider.remove(spec.server_id, fence=fence - 1, progress=lambda _: None),
    ]
    for verb in late:
        with pytest.raises(StaleFence):
            verb()
    assert _marks(api, server) == before


def test_a_write_that_slept_between_its_look_and_itself_fails(
    server: Server, api: Api, cluster: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The successor writes while this one holds what it has read: its own write is then out of date."""
    client = connect(inline(cluster.kubeconfig))
    writer, spec = Writer(client), _spec(server)
    writer.write(objects.namespace(spec), 1)
    wanted = objects.namespace(spec)
    apply = Writer._apply
    woken: list[int] = []

    def slow(self: Writer, *words: Any) -> None:
        if not woken:
            woken.append(1)
            Writer(client).write(objects.namespace(spec), 9)
        apply(self, *words)

    monkeypatch.setattr(Writer, "_apply", slow)
    with pytest.raises(StaleFence):
        writer.write({**wanted, "metadata": {**wanted["metadata"], "labels": {"stale": "yes"}}}, 2)
    found = client.get(paths(place(server)).namespace)
    assert found is not None
    assert found["metadata"]["annotations"][FENCE] == "9"
    assert "stale" not in found["metadata"]["labels"]
    client.close()


def test_two_makers_at_once_leave_the_higher_fence(server: Server, api: Api, cluster: TestCluster) -> None:
    spec, ended = _spec(server), []
    barrier = threading.Barrier(6)

    def make(fence: int) -> None:
        client = connect(inline(cluster.kubeconfig))
        try:
            barrier.wait(60)
            Writer(client).write(objects.namespace(spec), fence)
            ended.append(fence)
        except StaleFence:
            pass
        finally:
            client.close()
            connection.close()

    threads = [threading.Thread(target=make, args=[fence]) for fence in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = api.get("v1", "Namespace", place(server))
    assert found is not None
    assert found["metadata"]["annotations"][FENCE] == "6"
    assert 6 in ended


def test_a_trouble_that_stays_ends_the_operation_by_its_name(
    make_region: Callable[..., Cluster], make_server: Callable[..., Server], operator: Operator, pods: Pods,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    region = make_region(issuer="broken").region
    monkeypatch.setattr(clusters.provider_of(region), "_trouble", 3.0)
    server = make_server(region=region.code, server_name="broken.region.example", version=SPEC.version)
    pods.silent.add(place(server))
    operation = carry_out(server)
    assert (operation.state, operation.error_code) == ("failed", "CertificateFailed")
    assert "its data is untouched" in operation.error


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: config["users"][0]["user"].update({"exec": {"command": "sh"}}), "runs a program"),
        (lambda config: config["users"][0]["user"].update({"tokenFile": "/etc/shadow"}), "names a file"),
        (lambda config: config["clusters"][0]["cluster"].update({"certificate-authority": "/x"}), "names a file"),
        (lambda config: config["clusters"][0]["cluster"].update({"insecure-skip-tls-verify": True}), "trusts any"),
        (lambda config: config["clusters"][0]["cluster"].update({"server": "http://10.0.0.1"}), "no https"),
        (lambda config: config["users"][0].update({"user": {}}), "no credentials"),
        (lambda config: config.pop("current-context"), "no complete current context"),
    ],
)
def test_a_kubeconfig_that_is_refused(cluster: TestCluster, change: Callable[[Any], Any], said: str) -> None:
    config = yaml.safe_load(inline(cluster.kubeconfig))
    change(config)
    with pytest.raises(ProviderError, match=said) as caught:
        connect(yaml.safe_dump(config))
    assert caught.value.code == "RegionCredentials"


def test_a_kubeconfig_of_another_cluster(cluster: TestCluster, fault_proxy: FaultProxy) -> None:
    config = yaml.safe_load(inline(cluster.kubeconfig))
    other = yaml.safe_load(fault_proxy.kubeconfig().read_text())
    config["clusters"][0]["cluster"]["server"] = other["clusters"][0]["cluster"]["server"]
    client = connect(yaml.safe_dump(config))
    client._patience = 0.5
    with pytest.raises(ProviderError, match="can't be trusted") as caught:
        client.get("/version")
    assert caught.value.code == "RegionUnreachable"
    client.close()


def _spec(server: Server) -> Any:
    from provisioning import secrets  # noqa: PLC0415 (only where Django runs)
    from provisioning.spec import build, wanted  # noqa: PLC0415 (as above)

    found = secrets.ensure_spec_secrets(server, _now)
    want = wanted(server, federation=False, now=server.created)
    return build(server, "create", want, {}, found)


def _now() -> Any:
    from contextlib import nullcontext  # noqa: PLC0415 (only here)

    return nullcontext()


def _marks(api: Api, server: Server) -> list[Any]:
    found = [api.get("v1", "Namespace", place(server)), api.get("v1", "Secret", "synapse-secrets", place(server))]
    secrets = [(each or {})["metadata"]["resourceVersion"] for each in found]
    mine = api.get(*SERVER, place(server))
    assert mine is not None
    return [
        *secrets,
        mine["metadata"]["generation"],
        mine["metadata"]["annotations"],
        "deletionTimestamp" in mine["metadata"],
    ]
