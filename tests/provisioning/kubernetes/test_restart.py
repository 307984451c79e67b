"""The API server itself is killed and comes back in the middle of an operation, with an operator at work on it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection

from provisioning import engine, services
from provisioning.models import Cluster as Row
from provisioning.models import Operation
from provisioning.providers.kubernetes.provider import KubernetesProvider
from provisioning.providers.kubernetes.writing import Writer
from tenants.models import Server
from tenants.releases import newest
from tests.cluster.launch import Cluster
from tests.operator.process import Operator
from tests.provisioning.kubernetes.conftest import BASE, SERVER
from tests.provisioning.kubernetes.pods import Pods
from tests.provisioning.kubernetes.test_life import becomes, signing_key

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.xdist_group("cluster")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One of its own: others would notice."""
    from tests.cluster.fixtures import need_programs  # noqa: PLC0415 (only where it is used)

    need_programs()
    with Cluster() as started:
        yield started


@pytest.fixture(scope="module")
def pods(cluster: Cluster) -> Iterator[Pods]:
    """What answers in the place of pods there."""
    with Pods(cluster.kubeconfig) as running:
        yield running


@pytest.fixture(scope="module")
def operator(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, pods: Pods) -> Iterator[Operator]:
    """Its operator."""
    with Operator(cluster.kubeconfig, tmp_path_factory.mktemp("operator"), pods.route) as running:
        yield running


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize("place", [(Writer, "_make"), (KubernetesProvider, "_settled")], ids=["make", "settle"])
def test_the_operation_ends_well(
    cluster: Cluster,
    make_region: Callable[..., Row],
    make_server: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[type, str],
) -> None:
    kind, verb = place
    region = make_region().region
    server = make_server(region=region.code, server_name=f"{verb.strip('_')}.{BASE}", version=newest().version)
    operation = services.reconcile(server.pk)
    assert operation is not None
    reached, killed = threading.Event(), threading.Event()
    real = getattr(kind, verb)

    def held(*words: Any) -> Any:
        reached.set()
        assert killed.wait(60)
        return real(*words)

    monkeypatch.setattr(kind, verb, held)

    def work() -> None:
        try:
            for _ in range(engine.MAX_ATTEMPTS):
                engine.run(operation.pk)
                Operation.objects.filter(pk=operation.pk).update(run_after=operation.created)
        finally:
            connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert reached.wait(120)
        cluster.stop_api_server(signal.SIGKILL)
        killed.set()  # the worker goes on while nobody answers
        cluster.start_api_server()
    finally:
        killed.set()
        thread.join()
    operation.refresh_from_db()
    assert (operation.state, operation.error) == ("succeeded", "")
    becomes(server, "ready")
    found = cluster.api.get(*SERVER, f"hearth-{server.pk}")
    assert found is not None
    assert found["spec"]["secret"]["signingKeyId"]
    assert signing_key(cluster.api, server)
