"""pytest's way to a cluster: `cluster` for a whole run, `namespace` for one test, `kubernetes_client`, `fault_proxy`.

Tests that use them carry `pytest.mark.xdist_group`: one worker runs all of a group, on one cluster. There are
`cluster`, `cluster-operator` and `cluster-rights`, because they mostly wait. The cluster ends with its group: idle it
would still take a tenth of a core from all other tests.
"""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cluster import definitions, tools
from tests.cluster.api import Api
from tests.left_out import leave_out

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

    from tests.cluster.faults import FaultProxy
    from tests.cluster.given import Given
    from tests.cluster.launch import Cluster

KEPT = Path(__file__).resolve().parents[2] / "var" / "test" / "cluster-logs"
"""Where the logs of a cluster go when a test on it failed."""
running = pytest.StashKey["Cluster | Given"]()


def need_programs() -> None:
    """Leave the running test out if the test cluster can't be started here."""
    try:
        for name in tools.CLUSTER:
            tools.find(name)
        definitions.find()
    except tools.Missing as missing:
        leave_out(str(missing))


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Cluster | Given:
    """One furnished cluster for a group: a new one, or that of KUBECONFIG. Its API server may be restarted."""
    stash = request.config.stash
    if running not in stash:
        stash[running] = _start()
    return stash[running]


def _start() -> Cluster | Given:
    if path := os.environ.get("KUBECONFIG"):
        from tests.cluster.given import Given

        return Given(Path(path)).__enter__()
    need_programs()
    from tests.cluster.launch import Cluster

    return Cluster().__enter__()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    yield
    # Without xdist tests of other groups may stand in between.
    if "PYTEST_XDIST_WORKER" in os.environ and (nextitem is None or not _on_cluster(nextitem)):
        _end(item.session)


def pytest_sessionfinish(session: pytest.Session) -> None:
    _end(session)
    # Kubernetes' client writes keys and certificates into files that it removes when Python ends, which xdist's
    # processes don't do in order.
    if written := sys.modules.get("kubernetes.config.kube_config"):
        written._cleanup_temp_files()


def _on_cluster(item: pytest.Item) -> bool:
    return any("cluster" in str(mark.args) for mark in item.iter_markers("xdist_group"))


def _end(session: pytest.Session) -> None:
    stash = session.config.stash
    if running not in stash:
        return
    from tests.cluster.launch import Cluster

    ended = stash[running]
    del stash[running]
    if session.testsfailed and isinstance(ended, Cluster):
        shutil.rmtree(KEPT, ignore_errors=True)
        shutil.copytree(ended.logs, KEPT)
        session.config.get_terminal_writer().line(f"\nThe cluster's logs are in {KEPT}")
    ended.__exit__(None, None, None)


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """A `Cluster` of the test's own, not yet started: for what would disturb the others'."""
    if os.environ.get("KUBECONFIG"):
        leave_out("it needs a cluster of its own, and KUBECONFIG gives one that may not be stopped.")
    need_programs()
    from tests.cluster.launch import Cluster

    made = Cluster()
    yield made
    made.stop()


@pytest.fixture
def new_namespace(cluster: Cluster | Given) -> Iterator[Callable[..., str]]:
    """Return a function that makes a namespace with these labels and returns its name. All go after the test."""
    made: list[str] = []

    def make(**labels: str) -> str:
        name = f"test-{uuid.uuid4().hex[:12]}"
        meta = {"name": name, "labels": {key.replace("__", "/"): value for key, value in labels.items()}}
        cluster.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
        made.append(name)
        # Until its default account is there, pods in it are refused.
        cluster.api.wait("default account", lambda: cluster.api.get("v1", "ServiceAccount", "default", name))
        return name

    yield make
    for name in made:
        cluster.api.delete("v1", "Namespace", name)


@pytest.fixture
def namespace(new_namespace: Callable[..., str]) -> str:
    """An empty namespace that goes after the test."""
    return new_namespace()


@pytest.fixture
def api(cluster: Cluster | Given) -> Api:
    """The tests' own small client, an administrator."""
    return cluster.api


@pytest.fixture
def kubernetes_client(cluster: Cluster | Given) -> Iterator[ApiClient]:
    """Kubernetes' own Python client, an administrator."""
    from kubernetes import config

    # This one function of the library has no types.
    with config.new_client_from_config(str(cluster.kubeconfig)) as client:  # type: ignore[no-untyped-call]
        yield client


@pytest.fixture
def fault_proxy(cluster: Cluster | Given, tmp_path: Path) -> Iterator[FaultProxy]:
    """A proxy before the cluster that injects faults."""
    from tests.cluster.faults import FaultProxy

    with FaultProxy(cluster.kubeconfig, tmp_path) as proxy:
        yield proxy
