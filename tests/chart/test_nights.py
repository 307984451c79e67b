"""What wakes somebody at night: probes that end what is only busy, endless drains, rules that keep a proof out."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any

import pytest

from provisioning.chart.schema import FOLDER
from tests.chart import values
from tests.chart.render import Rendered, render
from tests.chart.test_objects import SERVERS, each_server
from tests.cluster.api import Api, ApiError

CLOUDS = [
    ipaddress.ip_address(each)
    for each in (
        "169.254.169.254",  # AWS, Azure, Google and most others
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure's second one, which is a public address
        "192.0.0.192",  # Oracle
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google
    )
]
"""Where machines of a cloud ask for their secrets, by each cloud's documentation."""


@pytest.mark.parametrize("change", [{}, {"federation": {"enabled": False}}])
@each_server
def test_no_pod_reaches_any_clouds_metadata(name: str, change: dict[str, Any]) -> None:
    blocks = [
        peer["ipBlock"]
        for policy in render(SERVERS[name](**change)).kind("NetworkPolicy")
        for rule in policy["spec"].get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    for block in blocks:
        taken = [ipaddress.ip_network(each) for each in block.get("except", [])]
        for address in CLOUDS:
            # `in` says no for another family of addresses.
            open_ = address in ipaddress.ip_network(block["cidr"]) and not any(address in each for each in taken)
            assert not open_, (address, block)


@pytest.mark.xdist_group("cluster")
@pytest.mark.parametrize("range_", ["0.0.0.0/0", "169.254.0.0/16", "168.63.0.0/16", "::/0", "fd00::/8"])
def test_a_range_with_a_clouds_metadata_in_it_is_refused(api: Api, namespace: str, range_: str) -> None:
    wide = values.monolith(network={"egress": [range_]})
    with pytest.raises(ApiError, match="narrower ranges"):
        api.apply(values.matrix_server(wide, namespace), dry_run=True)
    managed = values.managed(database={"managed": {"cidrs": [range_]}})
    with pytest.raises(ApiError, match="narrower ranges"):
        api.apply(values.matrix_server(managed, namespace), dry_run=True)


@pytest.mark.xdist_group("cluster")
@pytest.mark.parametrize("range_", ["300.1.1.1/8", "10.0.0.0/33", "1:2/999"])
def test_a_range_that_is_none_is_refused(api: Api, namespace: str, range_: str) -> None:
    wrong = values.matrix_server(values.monolith(network={"egress": [range_]}), namespace)
    with pytest.raises(ApiError, match="A range is written as"):
        api.apply(wrong, dry_run=True)


@pytest.mark.xdist_group("cluster")
def test_narrow_ranges_and_a_dns_cache_on_the_node_are_taken(api: Api, namespace: str) -> None:
    network = {"egress": ["10.1.0.0/16", "fd01::/48"], "dnsAddresses": ["169.254.20.10/32"]}
    api.apply(values.matrix_server(values.monolith(network=network), namespace), dry_run=True)


def test_a_router_reaches_the_pod_that_proves_a_host() -> None:
    rendered = render(values.workers())
    solver = rendered["NetworkPolicy/certificate"]["spec"]
    assert solver["podSelector"]["matchLabels"] == {"acme.cert-manager.io/http01-solver": "true"}
    (rule,) = solver["ingress"]
    assert rule["ports"] == [{"port": 8089}]
    assert rule["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "ingress"}
    given = render(values.workers(routing={"certificate": None, "certificateSecret": "given"}))
    assert "NetworkPolicy/certificate" not in given
    # A pod for each of two hosts has room beside all others.
    pods = [int(each["ResourceQuota/server"]["spec"]["hard"]["pods"]) for each in (rendered, given)]
    assert pods[0] - pods[1] == 2


def seconds(probe: Mapping[str, Any]) -> int:
    """Return for how long a probe may fail before something happens."""
    return int(probe.get("periodSeconds", 10)) * int(probe.get("failureThreshold", 3))


def synapses(rendered: Rendered) -> list[tuple[int, dict[str, Any]]]:
    """Return the number of processes and the container of each of Synapse's workloads."""
    found = []
    for each in rendered.kind("Deployment", "StatefulSet"):
        spec = each["spec"]
        if "hearth.host/synapse" in spec["template"]["metadata"]["labels"]:
            scaler = f"HorizontalPodAutoscaler/{each['metadata']['name']}"
            count = spec.get("replicas") or rendered[scaler]["spec"]["minReplicas"]
            found.append((count, spec["template"]["spec"]["containers"][0]))
    return found


@each_server
def test_a_process_that_nobody_can_stand_in_for_stays_reachable_while_it_is_busy(name: str) -> None:
    for count, container in synapses(render(SERVERS[name]())):
        patience = seconds(container["readinessProbe"])
        # A stall of the event loop, as large rooms bring, is a slow answer; without an endpoint it is an error for all.
        assert patience >= 120 if count == 1 else patience <= 15, (name, container["command"], patience)
        assert seconds(container["livenessProbe"]) >= 120


@each_server
def test_a_long_change_of_the_schema_is_not_cut_off(name: str) -> None:
    for _, container in synapses(render(SERVERS[name]())):
        assert seconds(container["startupProbe"]) >= 24 * 3600


@each_server
def test_a_process_that_ends_leaves_its_last_words(name: str) -> None:
    # The operator tells a wrong password from a crash by them; Kubernetes keeps them only when it is told to.
    for _, container in synapses(render(SERVERS[name]())):
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_a_digest_of_figures_alone_stays_a_text() -> None:
    # Found by trying: one digest in a million looks like a number, which no API server takes for an annotation.
    spec = values.monolith(suspended={"message": "Back soon (2168331)."})
    for path in sorted((FOLDER / "templates").iterdir()):
        for line in path.read_text().splitlines():
            assert "sha256sum" not in line or re.search(r"\| quote \}\}$", line), f"{path.name}: {line.strip()}"
    for name, pod in render(spec).pods().items():
        for key, value in pod["metadata"]["annotations"].items():
            assert isinstance(value, str), f"{name}: {key}"


@pytest.mark.parametrize("persistence", [True, False])
def test_redis_has_room_for_a_copy_of_itself(persistence: bool) -> None:
    own = {"persistence": persistence, "storage": {"size": "2Gi"}}
    rendered = render(values.workers(redis={"own": own}))
    most = re.search(r"^maxmemory (\d+)mb$", rendered["ConfigMap/redis"]["data"]["redis.conf"], re.MULTILINE)
    assert most is not None
    limit = int(rendered.pods()["redis"]["spec"]["containers"][0]["resources"]["limits"]["memory"].removesuffix("Mi"))
    assert int(most[1]) * (2 if persistence else 1) + 48 <= limit


@each_server
def test_a_drain_of_a_node_always_comes_to_its_end(name: str) -> None:
    for budget in render(SERVERS[name]()).kind("PodDisruptionBudget"):
        # With minAvailable a single process could never be moved.
        assert budget["spec"]["maxUnavailable"] >= 1
        assert "minAvailable" not in budget["spec"]
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@each_server
def test_a_process_has_more_time_to_end_than_its_router_needs_to_leave_it(name: str) -> None:
    for pod in render(SERVERS[name]()).pods().values():
        for container in pod["spec"]["containers"]:
            sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            assert pod["spec"].get("terminationGracePeriodSeconds", 30) >= sleep + 10


@pytest.mark.parametrize("instances", [1, 2, 3])
def test_a_database_of_each_size_can_be_drained_and_does_not_stop_for_a_lost_standby(instances: int) -> None:
    cluster = {"instances": instances, "synchronous": instances > 1, "readReplicas": False}
    spec = render(values.workers(database={"cluster": cluster}))["Cluster/postgres"]["spec"]
    assert spec["enablePDB"] is (instances > 1)
    assert spec["primaryUpdateMethod"] == ("switchover" if instances > 1 else "restart")
    if instances > 1:
        # What every write waits for must survive the loss of one instance.
        needed = spec["postgresql"]["synchronous"]
        assert needed["dataDurability"] == "preferred" or needed["number"] <= instances - 2
    else:
        assert "synchronous" not in spec["postgresql"]
