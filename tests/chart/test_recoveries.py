"""What brings a server back, as rendered: what it may reach and read; and servers that nobody may use or reach."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart import values
from tests.chart.render import Rendered, render
from tests.chart.test_objects import policies_of, reached, selects

Object = dict[str, Any]
VOLUME: Object = {"media": {"s3": None, "volume": {"size": "20Gi", "class": "encrypted"}}}
LIVING = values.monolith(recovery=values.RECOVERY)["recovery"]["from"]["namespace"]
POSTGRES = {"podSelector": {"matchLabels": {"cnpg.io/cluster": "postgres"}}}


def recovering(*, copies: bool = False, rests: bool = False, settle: bool = False, **changes: Any) -> Rendered:
    recovery = values.RECOVERY | ({"settle": True, "storage": None} if settle else {})
    spec = values.monolith(**({"recovery": recovery} | VOLUME | changes))
    return render(spec, recovery={"copies": copies, "rests": rests})


def test_nothing_serves_and_no_database_is_made_before_there_is_one_to_copy() -> None:
    rendered = recovering()
    assert rendered["StatefulSet/synapse-main"]["spec"]["replicas"] == 0
    assert rendered["StatefulSet/recovery"]["spec"]["replicas"] == 1
    assert rendered.kind("Cluster") == []
    cluster = recovering(copies=True)["Cluster/postgres"]["spec"]
    (source,) = cluster["externalClusters"]
    assert cluster["bootstrap"]["pg_basebackup"]["source"] == source["name"]
    assert source["connectionParameters"]["sslmode"] == "verify-full"
    names = recovering()["Certificate/recovery"]["spec"]["dnsNames"]
    assert source["connectionParameters"]["host"] in names
    assert recovering(rests=True)["StatefulSet/recovery"]["spec"]["replicas"] == 0


def test_its_pod_reaches_databases_the_store_and_hearth_alone() -> None:
    rendered = recovering()
    found = [(peer, [port["port"] for port in ports]) for peer, ports in reached(rendered, "recovery")]
    assert (POSTGRES, [5432]) in found
    living = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": LIVING}}}
    assert (POSTGRES | living, [5432]) in found
    assert {tuple(ports) for peer, ports in found if "ipBlock" in peer} == {(443, 18000)}
    (own,) = [each for each in policies_of(rendered, "recovery") if each.get("ingress")]
    assert [[port["port"] for port in rule["ports"]] for rule in own["ingress"]] == [[8009], [5432]]


def test_a_living_database_lets_in_recoveries_of_its_own_organisation() -> None:
    policy = render(values.monolith())["NetworkPolicy/postgres"]["spec"]
    peers = [peer for rule in policy["ingress"] for peer in rule["from"]]
    (other,) = [each for each in peers if "namespaceSelector" in each and "podSelector" in each]
    assert other["namespaceSelector"]["matchLabels"] == {"hearth.host/organisation": values.ORGANISATION}
    assert selects(other["podSelector"], recovering().pods()["recovery"]["metadata"]["labels"])


@pytest.mark.parametrize("settle", [False, True])
def test_it_reads_its_request_and_writes_where_the_data_lie(settle: bool) -> None:
    rendered = recovering(settle=settle)
    pod = rendered.pods()["recovery-settle" if settle else "recovery"]["spec"]
    (container,) = pod["containers"]
    mounts = {each["mountPath"]: bool(each.get("readOnly")) for each in container["volumeMounts"]}
    writable = {path for path, read_only in mounts.items() if not read_only}
    assert writable == ({"/tmp"} if settle else {"/tmp", "/var/lib/hearth-recovery", "/var/lib/synapse/media"})
    assert ("/etc/synapse-database" in mounts) is settle
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    identity = rendered["Certificate/recovery-identity"]["spec"]["uris"]
    assert identity == [f"spiffe://hearth.internal/agent/{values.RECOVERY['identity']}"]


def test_a_closed_server_has_its_database_and_no_process() -> None:
    rendered = render(values.workers(closed=True))
    sets = rendered.kind("Deployment", "StatefulSet")
    assert {each["spec"]["replicas"] for each in sets if each["metadata"]["name"] != "synapse-front"} == {0}
    assert rendered["Cluster/postgres"]["metadata"]["annotations"]["cnpg.io/hibernation"] == "off"
    assert rendered.kind("HorizontalPodAutoscaler") == []


@pytest.mark.parametrize("base", [values.workers, values.managed])
def test_nothing_outside_leads_to_a_server_that_is_not_routed(base: Any) -> None:
    rendered = render(base(routing={"unrouted": True}))
    assert rendered.kind("Ingress", "HTTPRoute", "ReferenceGrant", "Certificate") == []
    assert [each for each in rendered.kind("Service") if each["spec"]["type"] == "LoadBalancer"] == []
    assert not [name for name in rendered if "synapse-front" in name]
    assert "Service/synapse-main" in rendered, "Hearth reaches it"


def test_whose_data_they_are_says_whose_identity_the_agent_has() -> None:
    spec = values.monolith(backup=values.BACKUP)
    found = render(spec, id="5b1d6f0e-7c1a-4c57-9a43-6d0f2a3b4c5d")["Certificate/backup-agent"]["spec"]
    assert found["uris"] == ["spiffe://hearth.internal/agent/5b1d6f0e-7c1a-4c57-9a43-6d0f2a3b4c5d"]
