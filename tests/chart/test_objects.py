"""What the rendered objects mean: who may reach whom, what scales, what a suspension and a restart change."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from typing import Any

import promql_parser
import pytest
import yaml

from provisioning.chart.schema import FOLDER
from tests.chart import values
from tests.chart.people import matches, route, rules_of
from tests.chart.render import NAMESPACE, UID, Rendered, render
from tests.chart.test_synapse import samples

Object = dict[str, Any]
SERVERS: dict[str, Callable[..., Object]] = {
    "monolith": values.monolith,
    "workers": values.workers,
    "managed": values.managed,
}
METADATA = ipaddress.ip_address("169.254.169.254")
each_server = pytest.mark.parametrize("name", SERVERS)


def policies_of(rendered: Rendered, pod: str) -> list[Object]:
    """Return the network policies that select the pods of a workload."""
    labels = rendered.pods()[pod]["metadata"]["labels"]
    return [each["spec"] for each in rendered.kind("NetworkPolicy") if selects(each["spec"]["podSelector"], labels)]


def selects(selector: Object, labels: Object) -> bool:
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def reached(rendered: Rendered, pod: str) -> Iterator[tuple[Object, list[Object]]]:
    """Give each peer of a workload's egress with its ports."""
    for policy in policies_of(rendered, pod):
        for rule in policy.get("egress", []):
            for peer in rule["to"]:
                yield peer, rule.get("ports", [])


@each_server
def test_every_object_belongs_to_the_server(name: str) -> None:
    for each in render(SERVERS[name]()).objects:
        meta = each["metadata"]
        assert meta["labels"]["hearth.host/server"] == NAMESPACE
        if each["kind"] in ("Vpc", "Subnet"):  # of the whole cluster: nothing in a namespace can own them
            assert "ownerReferences" not in meta
            continue
        assert meta["namespace"] == NAMESPACE
        owner = meta["ownerReferences"][0]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("MatrixServer", "synapse", UID)


@each_server
def test_nothing_goes_in_or_out_that_is_not_named(name: str) -> None:
    rendered = render(SERVERS[name]())
    deny = rendered["NetworkPolicy/default-deny"]["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in rendered.kind("NetworkPolicy"):
        for rule in [*policy["spec"].get("egress", []), *policy["spec"].get("ingress", [])]:
            assert rule.get("to") or rule.get("from") or policy["metadata"]["name"] == "loadbalancer"


@pytest.mark.parametrize("change", [{}, {"federation": {"enabled": False}}, {"suspended": {}}])
@each_server
def test_no_pod_reaches_the_clouds_metadata(name: str, change: Object) -> None:
    rendered = render(SERVERS[name](**change))
    blocks = [
        peer["ipBlock"]
        for policy in rendered.kind("NetworkPolicy")
        for rule in policy["spec"].get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert blocks
    for block in blocks:
        network = ipaddress.ip_network(block["cidr"])
        inside = network.version == 4 and METADATA in network
        assert not inside or any(METADATA in ipaddress.ip_network(each) for each in block["except"])


def test_synapse_reaches_only_what_it_needs() -> None:
    rendered = render(values.workers())
    peers = list(reached(rendered, "synapse-main"))
    pods = {yaml.safe_dump(peer["podSelector"]["matchLabels"]): ports for peer, ports in peers if "podSelector" in peer}
    assert {key.strip(): [each["port"] for each in ports] for key, ports in pods.items()} == {
        "cnpg.io/cluster: postgres": [5432],
        "app.kubernetes.io/name: redis": [6379],
        "hearth.host/synapse: 'true'": [9093],
    }
    private = ipaddress.ip_network("10.0.0.0/8")
    for peer, ports in peers:
        if "ipBlock" in peer and peer["ipBlock"]["cidr"] == "0.0.0.0/0" and "endPort" in ports[0]:
            assert str(private) in peer["ipBlock"]["except"]


def test_without_federation_only_https_leaves() -> None:
    rendered = render(values.monolith(federation={"enabled": False}))
    ports = {port["port"] for peer, ports in reached(rendered, "synapse-main") if "ipBlock" in peer for port in ports}
    assert ports == {443}
    assert rendered.configuration()["federation_domain_whitelist"] == []


def test_redis_and_the_front_reach_nothing() -> None:
    rendered = render(values.workers())
    assert list(reached(rendered, "redis")) == []
    assert list(reached(rendered, "synapse-front")) == []


def test_only_the_named_may_come_in() -> None:
    rendered = render(values.workers())
    seen: dict[int, list[str]] = {}
    for policy in policies_of(rendered, "synapse-main"):
        for rule in policy.get("ingress", []):
            for peer in rule["from"]:
                selector = peer.get("namespaceSelector") or peer["podSelector"]
                seen.setdefault(rule["ports"][0]["port"], []).append(next(iter(selector["matchLabels"].values())))
    assert seen == {8008: ["ingress", "hearth"], 9090: ["monitoring"], 9093: ["true"]}


def test_a_given_range_takes_the_place_of_everywhere() -> None:
    rendered = render(values.managed())
    cidrs = {
        peer["ipBlock"]["cidr"]
        for peer, ports in reached(rendered, "synapse-main")
        if ports[0]["port"] == 5432
        if "ipBlock" in peer
    }
    assert cidrs == {"10.9.0.0/24"}


def test_only_generic_workers_are_scaled_by_load_and_the_scaler_alone_says_how_many() -> None:
    rendered = render(values.workers())
    (scaler,) = rendered.kind("HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"]["name"] == "synapse-generic"
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (2, 6)
    assert "replicas" not in rendered["Deployment/synapse-generic"]["spec"]
    fixed = render(values.workers(workers={"generic": {"min": 3, "max": 3}}))
    assert fixed.kind("HorizontalPodAutoscaler") == []
    assert fixed["Deployment/synapse-generic"]["spec"]["replicas"] == 3


@each_server
def test_a_suspension_stops_everything_but_the_front(name: str) -> None:
    rendered = render(SERVERS[name](suspended={"message": "Please pay."}))
    replicas = {
        each["metadata"]["name"]: each["spec"]["replicas"] for each in rendered.kind("Deployment", "StatefulSet")
    }
    assert replicas.pop("synapse-front") == 2
    assert set(replicas.values()) == {0}
    assert rendered.kind("HorizontalPodAutoscaler") == []
    for cluster in rendered.kind("Cluster"):
        assert cluster["metadata"]["annotations"]["cnpg.io/hibernation"] == "on"
    assert '"suspended":"Please pay."' in rendered["ConfigMap/synapse-front"]["data"]["front.json"]
    for ingress in rendered.kind("Ingress"):
        paths = [path for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]
        assert {path["backend"]["service"]["name"] for path in paths} == {"synapse-front"}


def test_behind_a_load_balancer_the_front_answers_while_the_server_is_away() -> None:
    cases: list[tuple[Object, str]] = [({}, "synapse-main"), ({"suspended": {}}, "synapse-front")]
    for change, name in cases:
        rendered = render(values.managed(**change))
        selector = rendered["Service/synapse-loadbalancer"]["spec"]["selector"]
        assert selects({"matchLabels": selector}, rendered.pods()[name]["metadata"]["labels"])
        assert rendered["NetworkPolicy/loadbalancer"]["spec"] in policies_of(rendered, name)
        ports = {each["targetPort"] for each in rendered["Service/synapse-loadbalancer"]["spec"]["ports"]}
        let_in = {each["port"] for each in rendered["NetworkPolicy/loadbalancer"]["spec"]["ingress"][0]["ports"]}
        container = rendered.pods()[name]["spec"]["containers"][0]
        (port,) = ports
        assert let_in == ports
        number = next(each["containerPort"] for each in container["ports"] if each["name"] == port)
        assert number != 8008, "administration answers there"


def test_a_load_balancer_alone_can_not_answer_for_a_foreign_name() -> None:
    assert "Deployment/synapse-front" not in render(values.managed(routing={"wellKnown": True}))


def test_a_suspension_keeps_every_volume_and_name() -> None:
    kept = ("PersistentVolumeClaim", "Cluster", "Certificate", "Service", "StatefulSet")
    before, after = render(values.workers()).kind(*kept), render(values.workers(suspended={})).kind(*kept)
    assert [each["metadata"]["name"] for each in before] == [each["metadata"]["name"] for each in after]


@pytest.mark.parametrize(
    "change",
    [
        {"restarts": 1},
        {"secret": {"revision": "r2"}},
        {"limits": {"maxUsers": 51}},
        {"workers": {"eventPersisters": 3}},
    ],
)
def test_what_processes_read_restarts_all_of_them(change: Object) -> None:
    before, after = render(values.workers()).pods(), render(values.workers(**change)).pods()
    for name in before:
        if "hearth.host/synapse" in before[name]["metadata"]["labels"]:
            assert before[name]["metadata"]["annotations"] != after[name]["metadata"]["annotations"]


@pytest.mark.parametrize(
    "change",
    [
        {"workers": {"generic": {"max": 7}}, "size": {"memory": "34Gi", "cpu": 17}},
        {"database": {"cluster": {"storage": {"size": "120Gi"}}}},
        {"routing": {"wellKnown": False}},
        {"monitoring": {"enabled": False}},
    ],
)
def test_what_processes_do_not_read_leaves_their_configuration_alone(change: Object) -> None:
    before, after = render(values.workers()).pods(), render(values.workers(**change)).pods()
    annotations = [pods["synapse-main"]["metadata"]["annotations"] for pods in (before, after)]
    assert annotations[0] == annotations[1]


def test_a_process_of_each_size_fits_the_plan() -> None:
    for name, spec in SERVERS.items():
        rendered = render(spec())
        memory = 0
        for each in rendered.kind("Deployment", "StatefulSet"):
            pod = each["spec"]["template"]
            if "hearth.host/synapse" not in pod["metadata"]["labels"]:
                continue
            scalers = [one["spec"]["maxReplicas"] for one in rendered.kind("HorizontalPodAutoscaler")]
            count = each["spec"].get("replicas") or scalers[0]
            memory += count * int(pod["spec"]["containers"][0]["resources"]["limits"]["memory"].removesuffix("Mi"))
        total = int(spec()["size"]["memory"].removesuffix("Gi")) * 1024
        assert 0.95 * total <= memory <= total, name


def test_plain_ingress_and_patterns_lead_to_the_same_process() -> None:
    """An Ingress without regular expressions may send less to workers, but never to another one."""
    spec = values.workers(routing={"ingress": {"regex": None}}, workers={"streamWriters": {"typing": False}})
    rendered = render(spec)
    rules = rules_of(rendered)
    paths = rendered["Ingress/synapse"]["spec"]["rules"][0]["http"]["paths"]
    checked = set()
    for group, entries in yaml.safe_load((FOLDER / "files" / "routes.yaml").read_text()).items():
        for entry in entries if group != "typing" else []:
            for path in samples(entry):
                taken = plain(paths, path)
                assert taken in (route(rules, path), "synapse-main")
                checked.add(taken)
    assert checked >= {
        "synapse-generic",
        "synapse-media",
        "synapse-to-device",
        "synapse-presence",
        "synapse-push-rules",
    }


def plain(paths: list[Object], path: str) -> str:
    """Return the service that a plain Ingress sends a path to: exact before the longest prefix."""
    found = [
        (each["pathType"] == "Exact", len(each["path"]), each["backend"]["service"]["name"])
        for each in paths
        if (each["path"] == path if each["pathType"] == "Exact" else matches({"type": "", "value": each["path"]}, path))
    ]
    return str(max(found)[2])


def test_an_ingress_of_patterns_says_what_the_gateway_says() -> None:
    rendered = render(values.workers())
    ingress = rendered["Ingress/synapse-workers"]["spec"]["rules"][0]["http"]["paths"]
    patterns = {("^" + each["path"], each["backend"]["service"]["name"]) for each in ingress}
    assert patterns == {
        (each["value"], name) for name, each in rules_of(rendered) if each["type"] == "RegularExpression"
    }
    rules = rendered["HTTPRoute/synapse"]["spec"]["rules"]
    assert len(rules) <= 16
    assert sum(len(rule["matches"]) for rule in rules) < 128


@pytest.mark.parametrize("path", ["/_synapse/admin/v1/register", "/_synapse/metrics", "/health", "/", "/_matrixed"])
def test_what_is_private_has_no_route(path: str) -> None:
    rendered = render(values.workers())
    assert [name for name, match in rules_of(rendered) if matches(match, path)] == []
    paths = rendered["Ingress/synapse"]["spec"]["rules"][0]["http"]["paths"]
    assert [each for each in paths if matches({"type": "", "value": each["path"]}, path)] == []


def test_a_foreign_name_is_served_well_known_only() -> None:
    rendered = render(values.workers())
    (rule,) = [each for each in rendered["Ingress/synapse"]["spec"]["rules"] if each["host"] == "alice.example"]
    assert [path["path"] for path in rule["http"]["paths"]] == ["/.well-known/matrix"]
    assert rendered["Certificate/synapse"]["spec"]["dnsNames"] == ["matrix.alice.example", "alice.example"]
    own = render(values.monolith(publicHost="alice.example", routing={"wellKnown": True}))
    assert "Deployment/synapse-front" not in own
    assert own.configuration()["serve_server_wellknown"] is True


def test_the_database_is_as_synapse_wants_it_and_as_safe_as_the_plan_says() -> None:
    cluster = render(values.workers())["Cluster/postgres"]["spec"]
    assert cluster["bootstrap"]["initdb"] | {"secret": None} == {
        "database": "synapse", "owner": "synapse", "secret": None,
        "encoding": "UTF8", "localeCollate": "C", "localeCType": "C",
    }  # fmt: skip
    assert cluster["postgresql"]["synchronous"] == {"method": "any", "number": 1, "dataDurability": "required"}
    assert cluster["affinity"]["podAntiAffinityType"] == "required"
    assert cluster["backup"]["volumeSnapshot"]["className"] == "encrypted-snapshots"
    assert int(cluster["postgresql"]["parameters"]["max_connections"]) >= 10 * 17
    two = render(values.monolith(database={"cluster": {"instances": 2, "synchronous": True}}))["Cluster/postgres"][
        "spec"
    ]
    assert two["postgresql"]["synchronous"]["dataDurability"] == "preferred"
    assert render(values.monolith())["Cluster/postgres"]["spec"]["enablePDB"] is False


@each_server
def test_every_alert_is_promql_and_says_what_to_do(name: str) -> None:
    for group in render(SERVERS[name]())["PrometheusRule/synapse"]["spec"]["groups"]:
        for rule in group["rules"]:
            promql_parser.parse(rule["expr"])  # ValueError where it is none
            assert f'namespace="{NAMESPACE}"' in rule["expr"]
            assert rule["labels"]["severity"] in ("critical", "warning", "info")
            assert set(rule["annotations"]) == {"summary", "description"}


def test_no_secret_is_in_a_config_map() -> None:
    for spec in SERVERS.values():
        for each in render(spec()).kind("ConfigMap"):
            for text in each["data"].values():
                for word in ("requirepass", "secret_access_key", "signing_key:", "password:"):
                    assert word not in text


def test_one_budget_for_each_pod() -> None:
    """Two budgets over one pod would stop every drain."""
    extras: list[Object] = [{}, {"suspended": {}}, {"backup": values.BACKUP}, {"recovery": values.RECOVERY}]
    for extra in extras:
        rendered = render(values.workers(**extra))
        for name, pod in rendered.pods().items():
            labels = pod["metadata"]["labels"]
            budgets = [
                each for each in rendered.kind("PodDisruptionBudget") if selects(each["spec"]["selector"], labels)
            ]
            assert len(budgets) == 1, name


@pytest.mark.parametrize("name", ["123", "on", "null"])
def test_a_name_that_reads_like_something_else_stays_a_name(name: str) -> None:
    spec = values.monolith(
        priorityClass=name,
        database={"cluster": {"storage": {"size": "20Gi", "class": name}}},
        secret={"name": name},
        routing={"ingress": {"class": name}},
        network={"ingressNamespace": name},
    )
    found = render(spec)
    cluster, ingress = found.kind("Cluster")[0], found.kind("Ingress")[0]
    assert cluster["spec"]["storage"]["storageClass"] == cluster["spec"]["priorityClassName"] == name
    assert ingress["spec"]["ingressClassName"] == name
    pod = found.pods()["synapse-main"]["spec"]
    assert pod["priorityClassName"] == name
    assert name in [each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each]
    policies = str([each["spec"] for each in found.kind("NetworkPolicy")])
    assert f"{{'kubernetes.io/metadata.name': '{name}'}}" in policies
