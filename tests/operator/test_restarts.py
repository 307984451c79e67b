"""Operators that are killed, that are two, that are told to stop, and an API server that restarts under them."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import pytest

from tests.cluster.given import Given
from tests.cluster.launch import Cluster
from tests.left_out import leave_out
from tests.operator.process import LEASES, Operator, relists
from tests.operator.servers import Server, Servers, carried_out, large, small

pytestmark = pytest.mark.xdist_group("cluster-operator")

SEEDS = range(1, 1 + int(os.environ.get("KILLS", "1")))


def test_the_api_server_restarts(cluster: Cluster | Given, operator: Operator, server: Server) -> None:
    if not isinstance(cluster, Cluster):
        leave_out("KUBECONFIG gives a cluster that may not be stopped.")
    before = relists(operator)
    cluster.restart_api_server()
    carried_out(server, 60)
    after = relists(operator)
    assert {kind: count - before[kind] for kind, count in after.items() if count - before[kind] > 1} == {}


@pytest.mark.parametrize("seed", SEEDS)
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
            carried_out(server, 61)
            assert second.numbers()["hearth_operator_leads"] == 1
        finally:
            assert second.end() == 0
            operator.start()
    carried_out(server, 62)


def test_an_operator_that_is_told_to_stop_hands_over_at_once(
    operator: Operator, servers: Servers, new_operator: Callable[..., Operator]
) -> None:
    server = servers.make(small())
    server.wait_ready()
    with new_operator(name="next") as following:
        following.wait_for("waiting for the lease")
        assert operator.end() == 0
        lease = servers.api.get("coordination.k8s.io/v1", "Lease", "hearth-operator", LEASES)
        assert lease is not None
        assert lease["spec"]["holderIdentity"] in {"", "next"}, "it was given up, and didn't run out"
        carried_out(server, 60)
        following.end()
    operator.start()
