"""What the API server and the way to it can do to an operator: it is back within seconds, and reads little."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.faults import FaultProxy
from tests.cluster.given import Given
from tests.cluster.launch import Cluster
from tests.operator.homeservers import Homeservers
from tests.operator.process import Operator, relists
from tests.operator.servers import Server, Servers, carried_out

pytestmark = pytest.mark.xdist_group("cluster-operator")

FAULTS = int(os.environ.get("FAULTS", "4"))
USERS = itertools.count(100)


@pytest.fixture(scope="module")
def proxy(cluster: Cluster | Given, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    """A proxy for all tests of this file."""
    with FaultProxy(cluster.kubeconfig, tmp_path_factory.mktemp("proxy")) as running:
        yield running


@pytest.fixture(scope="module")
def behind(
    cluster: Cluster | Given,
    proxy: FaultProxy,
    tmp_path_factory: pytest.TempPathFactory,
    homeservers: Homeservers,
) -> Iterator[tuple[Operator, Server]]:
    """An operator that reaches the cluster only through the proxy, and a server of it that is Ready."""
    servers = Servers(cluster.api)
    with Operator(proxy.kubeconfig(), tmp_path_factory.mktemp("operator"), homeservers.address) as operator:
        server = servers.make()
        server.wait_ready()
        yield operator, server
        servers.remove()


def settled(operator: Operator, proxy: FaultProxy) -> dict[str, float]:
    """Return how often everything of each kind was read, once all watches run again after the test before."""

    def now() -> dict[str, float] | None:
        before = relists(operator)
        time.sleep(0.3)
        return before if proxy.watches == len(before) and relists(operator) == before else None

    return dict(operator.wait_until(now, "watches that all run"))


Fault = Callable[[FaultProxy, random.Random], object]


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
    name: str, behind: tuple[Operator, Server], proxy: FaultProxy
) -> None:
    operator, server = behind
    before = settled(operator, proxy)
    FAULT_KINDS[name](proxy, random.Random(1))
    carried_out(server, next(USERS))
    server.wait_ready()
    after = relists(operator)
    assert {kind: count - before[kind] for kind, count in after.items() if count - before[kind] > 1} == {}
    assert operator.get("/livez").status_code == 200


@pytest.mark.timeout(300 + 30 * FAULTS)
def test_many_faults_one_after_the_other(behind: tuple[Operator, Server], proxy: FaultProxy) -> None:
    operator, server = behind
    chance = random.Random(os.environ.get("SEED", "4"))
    for _each in range(FAULTS):
        before = settled(operator, proxy)
        name = chance.choice(list(FAULT_KINDS))
        FAULT_KINDS[name](proxy, chance)
        carried_out(server, next(USERS))
        after = relists(operator)
        assert {kind: count - before[kind] for kind, count in after.items() if count - before[kind] > 1} == {}, name


def test_watches_that_go_deaf_are_noticed(behind: tuple[Operator, Server], proxy: FaultProxy) -> None:
    operator, server = behind
    before = settled(operator, proxy)
    proxy.stall_watches()
    carried_out(server, next(USERS))
    assert relists(operator) == before
