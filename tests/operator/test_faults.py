"""What the API server and the way to it can do to an operator: it is back within seconds, and reads little."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cluster.launch import Cluster, write_kubeconfig
from tests.left_out import leave_out
from tests.operator.homeservers import Homeservers
from tests.operator.process import Operator
from tests.operator.servers import STATEFUL, Server, Servers, large, small

if TYPE_CHECKING:
    from tests.cluster.faults import FaultProxy
    from tests.cluster.given import Given

pytestmark = pytest.mark.xdist_group("cluster")

RECOVERY = 10.0  # seconds after the API answers again
FAULTS = int(os.environ.get("FAULTS", "12"))


@pytest.fixture
def behind(
    fault_proxy: FaultProxy, tmp_path: Path, homeservers: Homeservers, servers: Servers
) -> Iterator[tuple[Operator, Server]]:
    """An operator that reaches the cluster only through the proxy, and a server of it that is Ready."""
    with Operator(fault_proxy.kubeconfig(), tmp_path, homeservers.address) as operator:
        server = servers.make()
        server.wait_ready()
        yield operator, server


def relists(operator: Operator) -> dict[str, float]:
    """Return how often everything of each kind was read."""
    return {name: count for name, count in operator.numbers().items() if "relists_total" in name}


def carried_out(server: Server, users: int, *, seconds: float = RECOVERY) -> None:
    """Change a server, and wait until a child has changed with it."""
    before = server.need(STATEFUL, "synapse-main")["metadata"]["generation"]
    server.change(limits={"maxUsers": users})
    server.wait_child(STATEFUL, "synapse-main", lambda each: each["metadata"]["generation"] > before, seconds=seconds)


Fault = Callable[["FaultProxy", random.Random], object]


def _refusing(status: int, **options: object) -> Fault:
    def fault(proxy: FaultProxy, chance: random.Random) -> None:
        with proxy.refusing(status, **options):  # type: ignore[arg-type]
            proxy.end_watches()
            time.sleep(chance.uniform(0.2, 1.5))

    return fault


def _down(proxy: FaultProxy, chance: random.Random) -> None:
    with proxy.down():
        time.sleep(chance.uniform(0.2, 3))


FAULT_KINDS: dict[str, Fault] = {
    "429": _refusing(429),
    "429 with a wish": _refusing(429, retry_after=1),
    "429 for watches": _refusing(429, verbs="watch"),
    "500": _refusing(500),
    "503 for writes": _refusing(503, verbs="patch create"),
    "watches answered 410": _refusing(410, verbs="watch"),
    "watches expired": lambda proxy, _chance: proxy.expire_watches(),
    "watches with ERROR 500": lambda proxy, _chance: proxy.break_watches(500),
    "watches with ERROR 429": lambda proxy, _chance: proxy.break_watches(429),
    "watches ended": lambda proxy, _chance: proxy.end_watches(),
    "everything cut": lambda proxy, _chance: proxy.cut(),
    "everything down": _down,
}


@pytest.mark.parametrize("name", FAULT_KINDS)
def test_a_fault_costs_seconds_and_at_most_one_list_a_kind(
    name: str, behind: tuple[Operator, Server], fault_proxy: FaultProxy
) -> None:
    operator, server = behind
    before = relists(operator)
    FAULT_KINDS[name](fault_proxy, random.Random(1))
    carried_out(server, 60)
    server.wait_ready()
    after = relists(operator)
    assert {kind: count - before[kind] for kind, count in after.items() if count - before[kind] > 1} == {}
    assert operator.get("/livez").status_code == 200


@pytest.mark.timeout(900)
def test_many_faults_one_after_the_other(behind: tuple[Operator, Server], fault_proxy: FaultProxy) -> None:
    operator, server = behind
    chance = random.Random(os.environ.get("SEED", "4"))
    for number in range(FAULTS):
        before = relists(operator)
        name = chance.choice(list(FAULT_KINDS))
        FAULT_KINDS[name](fault_proxy, chance)
        carried_out(server, 100 + number)
        after = relists(operator)
        assert {kind: count - before[kind] for kind, count in after.items() if count - before[kind] > 1} == {}, name


def test_watches_that_go_deaf_are_noticed(behind: tuple[Operator, Server], fault_proxy: FaultProxy) -> None:
    operator, server = behind
    before = relists(operator)
    fault_proxy.stall_watches()
    carried_out(server, 60, seconds=20)
    assert relists(operator) == before


def test_the_api_server_restarts(cluster: Cluster | Given, operator: Operator, server: Server) -> None:
    if not isinstance(cluster, Cluster):
        leave_out("KUBECONFIG gives a cluster that may not be stopped.")
    before = relists(operator)
    cluster.restart_api_server()
    carried_out(server, 60)
    after = relists(operator)
    assert {kind: count - before[kind] for kind, count in after.items() if count - before[kind] > 1} == {}


def test_an_expired_token_is_read_again(
    cluster: Cluster | Given, tmp_path: Path, homeservers: Homeservers, servers: Servers
) -> None:
    if not isinstance(cluster, Cluster):
        leave_out("KUBECONFIG gives a cluster whose keys are not ours.")
    api = cluster.api
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator", "namespace": "default"}}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "test-operator"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": "default"}],
    }
    api.apply(account, binding)
    token = tmp_path / "token"
    token.write_text(cluster.short_token("default", "operator", seconds=12))
    kubeconfig = tmp_path / "kubeconfig"
    write_kubeconfig(kubeconfig, cluster.url, cluster.folder / "ca.crt", {"tokenFile": str(token)})
    with Operator(kubeconfig, tmp_path, homeservers.address) as operator:
        server = servers.make()
        server.wait_ready()
        # As the kubelet does it: a new file takes the place of the old one.
        fresh = tmp_path / "fresh"
        time.sleep(8)
        fresh.write_text(cluster.short_token("default", "operator", seconds=600))
        fresh.replace(token)
        time.sleep(16)  # the API server remembers a good token for ten seconds
        carried_out(server, 60)
        assert operator.process is not None
        assert operator.process.poll() is None


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_any_point_it_finishes_afterwards(operator: Operator, servers: Servers, seed: int) -> None:
    chance = random.Random(seed)
    operator.wait_for(r"saw \d+ servers")
    server = servers.make(large())
    for _each in range(4):
        time.sleep(chance.uniform(0.05, 1.2))
        operator.kill()
        operator.start()
    server.wait_ready(seconds=60)
    for users in (60, 61):
        server.change(limits={"maxUsers": users})
        time.sleep(chance.uniform(0.0, 0.3))
        operator.kill()
        operator.start()
    server.wait_ready(seconds=60)
    assert not [note for reason, note in server.events() if reason in {"EditUndone", "Restored"}]


def test_of_two_operators_one_acts_and_the_other_takes_over(
    operator: Operator, server: Server, new_operator: Callable[..., Operator]
) -> None:
    with new_operator(name="second") as second:
        second.wait_for("waiting for the lease")
        carried_out(server, 60)
        assert second.numbers()["hearth_operator_leads"] == 0
        assert second.numbers().get('hearth_operator_requests_total{verb="patch"}', 0) == 0
        assert second.get("/readyz").status_code == 503
        assert second.get("/livez").status_code == 200
        operator.kill()
        try:
            carried_out(server, 61, seconds=40)
            assert second.numbers()["hearth_operator_leads"] == 1
        finally:
            assert second.end() == 0
            operator.start()
    carried_out(server, 62, seconds=30)


def test_an_operator_that_is_told_to_stop_hands_over_at_once(
    operator: Operator, servers: Servers, new_operator: Callable[..., Operator]
) -> None:
    server = servers.make(small())
    server.wait_ready()
    with new_operator(name="next") as following:
        following.wait_for("waiting for the lease")
        assert operator.end() == 0
        carried_out(server, 60, seconds=10)
        following.end()
    operator.start()
