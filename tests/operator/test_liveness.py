"""Liveness: it fails when a watch is dead, so that Kubernetes starts the operator again, and not before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.operator.homeservers import Homeservers
from tests.operator.process import Operator
from tests.operator.servers import Servers, carried_out

if TYPE_CHECKING:
    from tests.cluster.faults import FaultProxy

pytestmark = pytest.mark.xdist_group("cluster-operator")


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("ends", "the watch of ConfigMap is dead: "),
        ("hangs", "the watch of ConfigMap is dead: "),
        ("deaf", "listening has ended"),
    ],
)
def test_liveness_fails_when_a_watcher_is_dead(
    fault: str, sentence: str, fault_proxy: FaultProxy, tmp_path: Path, homeservers: Homeservers
) -> None:
    program = ("tests.operator.wounded", fault)
    with Operator(fault_proxy.kubeconfig(), tmp_path, homeservers.address, program=program) as operator:
        operator.wait_for(r"saw \d+ servers")
        assert fault == "deaf" or operator.get("/livez").status_code == 200

        def fails() -> bool:
            fault_proxy.expire_watches()  # again and again: a watch may just be opened anew
            return operator.get("/livez").status_code == 503

        operator.wait_until(fails, "liveness that fails")
        assert operator.get("/livez").text.startswith(sentence)
        assert operator.process is not None
        assert operator.process.poll() is None


@pytest.mark.parametrize(
    "line",
    [
        b"not JSON",
        b"[]",
        b'{"type": "MODIFIED"}',
        b'{"type": "MODIFIED", "object": {"metadata": {"namespace": "a", "name": "synapse", "resourceVersion": "1"}}}',
    ],
)
def test_what_can_not_be_read_ends_no_watch(
    line: bytes, fault_proxy: FaultProxy, tmp_path: Path, homeservers: Homeservers, servers: Servers
) -> None:
    with Operator(fault_proxy.kubeconfig(), tmp_path, homeservers.address) as operator:
        server = servers.make()
        server.wait_ready()
        fault_proxy.say_in_watches(line)
        carried_out(server, 60)
        assert operator.get("/livez").status_code == 200
