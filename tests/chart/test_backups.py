"""The process that backs a server up, as rendered: what it may reach, read and write, and who it is."""

from __future__ import annotations

from typing import Any

import pytest

from security.transport.certmanager import certificate
from security.transport.identities import Identity
from tests.chart import values
from tests.chart.render import NAMESPACE, Rendered, render
from tests.chart.test_objects import policies_of, reached

Object = dict[str, Any]
VOLUME: Object = {"media": {"s3": None, "volume": {"size": "20Gi", "class": "encrypted"}}}
SERVER = NAMESPACE.removeprefix("hearth-")


def backed_up(**changes: Any) -> Rendered:
    return render(values.monolith(**({"backup": values.BACKUP} | changes)))


def agent(rendered: Rendered) -> Object:
    return dict(rendered.pods()["backup-agent"]["spec"])


def mounts(pod: Object) -> dict[str, Object]:
    (container,) = pod["containers"]
    return {each["mountPath"]: each for each in container["volumeMounts"]}


def test_without_backups_nothing_of_it_is_there() -> None:
    rendered = render(values.monolith())
    assert [each for each in rendered if "backup" in each] == []
    cluster = rendered["Cluster/postgres"]["spec"]
    assert "roles" not in cluster["managed"]
    assert "pg_hba" not in cluster["postgresql"]


def test_it_has_an_identity_of_its_own_as_hearth_knows_it() -> None:
    found = backed_up()["Certificate/backup-agent"]["spec"]
    wanted = certificate(Identity("agent", SERVER), NAMESPACE, "backup-identity")["spec"]
    assert found | {"issuerRef": None} == wanted | {"issuerRef": None}
    assert found["issuerRef"] == {"name": "hearth-internal", "kind": "ClusterIssuer", "group": "cert-manager.io"}


def test_it_has_no_way_to_the_api_server() -> None:
    rendered = backed_up()
    pod = agent(rendered)
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("backup-agent", False)
    assert rendered["ServiceAccount/backup-agent"]["automountServiceAccountToken"] is False
    assert not [kind for kind in rendered if kind.startswith(("Role/", "RoleBinding/"))]


@pytest.mark.parametrize("media", [{}, VOLUME], ids=["bucket", "volume"])
def test_it_writes_its_own_state_and_nothing_else(media: Object) -> None:
    pod = agent(backed_up(**media))
    (container,) = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    writable = {path for path, each in mounts(pod).items() if not each.get("readOnly")}
    assert writable == {"/var/lib/hearth-backup", "/tmp"}
    assert all(each["emptyDir"]["sizeLimit"] for each in pod["volumes"] if "emptyDir" in each)


def test_synapse_can_not_read_what_only_backups_may_have() -> None:
    rendered = backed_up(**VOLUME)
    for name, pod in rendered.pods().items():
        secrets = {each["secret"]["secretName"] for each in pod["spec"]["volumes"] if "secret" in each}
        assert (name == "backup-agent") == bool(secrets & {"backup-secrets", "backup-identity"})
        if name == "synapse-main":
            assert pod["spec"]["securityContext"]["runAsUser"] != agent(rendered)["securityContext"]["runAsUser"]
    # Of Synapse's Secret it has the signing key alone.
    (keys,) = [each["secret"] for each in agent(rendered)["volumes"] if each["name"] == "signing-key"]
    assert keys["items"] == [{"key": "signing.key", "path": "signing.key"}]


def test_it_follows_no_link_so_configuration_is_mounted_as_plain_files() -> None:
    found = mounts(agent(backed_up()))
    names = ("homeserver.yaml", "log.yaml", "signing.key")
    assert [found[f"/etc/synapse/{name}"]["subPath"] for name in names] == list(names)


def test_a_volume_with_media_is_read_on_its_own_node() -> None:
    pod = agent(backed_up(**VOLUME))
    (term,) = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"]["app.kubernetes.io/name"] == "synapse-main"
    (claim,) = [each["persistentVolumeClaim"] for each in pod["volumes"] if each["name"] == "media"]
    # Mounted so, the kubelet never changes whose the files are.
    assert claim == {"claimName": "media", "readOnly": True}
    assert "podAffinity" not in agent(backed_up())["affinity"]


def test_it_reaches_its_database_the_store_and_hearth() -> None:
    rendered = backed_up(media={"s3": {"endpoint": "https://s3.example:9000"}})
    found = [(peer, [port["port"] for port in ports]) for peer, ports in reached(rendered, "backup-agent")]
    postgres = {"podSelector": {"matchLabels": {"cnpg.io/cluster": "postgres"}}}
    assert (postgres, [5432]) in found
    assert {tuple(ports) for peer, ports in found if "ipBlock" in peer} == {(443, 18000), (9000,)}
    own = next(each for each in policies_of(rendered, "backup-agent") if each.get("ingress"))
    (entry,) = own["ingress"]
    assert entry["ports"] == [{"port": 8009}]
    assert entry["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "hearth"}
    narrow = backed_up(backup=values.BACKUP | {"egress": {"ports": [9000], "cidrs": ["10.3.0.0/24"]}})
    blocks = [peer["ipBlock"]["cidr"] for peer, ports in reached(narrow, "backup-agent") if ports == [{"port": 9000}]]
    assert blocks == ["10.3.0.0/24"]


def test_a_store_with_an_authority_of_its_own_is_trusted_by_it_alone() -> None:
    authority = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    rendered = backed_up(backup=values.BACKUP | {"storeAuthority": authority})
    assert rendered["ConfigMap/backup-agent"]["data"] == {"store-ca.crt": authority}
    pod = agent(rendered)
    (container,) = pod["containers"]
    place = next(each["value"] for each in container["env"] if each["name"] == "SSL_CERT_FILE")
    assert place.removesuffix("/store-ca.crt") in mounts(pod)
    assert "ConfigMap/backup-agent" not in backed_up()


def test_its_role_may_replicate_and_read_no_table() -> None:
    cluster = backed_up()["Cluster/postgres"]["spec"]
    (role,) = cluster["managed"]["roles"]
    assert role["passwordSecret"] == {"name": "backup-secrets"}
    assert {key for key, value in role.items() if value is True} == {"login", "replication", "inherit"}
    assert role["inRoles"] == ["pg_read_all_stats"]
    assert cluster["postgresql"]["pg_hba"][-1] == "host all hearth_backup all reject"
    assert all(each.startswith("hostssl ") for each in cluster["postgresql"]["pg_hba"][:-1])


@pytest.mark.parametrize("backup", [values.BACKUP, {"enabled": False}], ids=["backed up", "not"])
def test_a_slot_outlives_a_failover_and_never_fills_the_volume(backup: Object) -> None:
    cluster = render(values.workers(backup=backup))["Cluster/postgres"]["spec"]
    assert cluster["replicationSlots"]["synchronizeReplicas"] == {"enabled": True}
    assert cluster["replicationSlots"]["highAvailability"] == {"enabled": True}
    kept = int(cluster["postgresql"]["parameters"]["max_slot_wal_keep_size"].removesuffix("MB"))
    assert kept == int(cluster["storage"]["size"].removesuffix("Gi")) * 1024 // 4


def test_its_volume_and_its_pod_fit_the_quota() -> None:
    hard = [
        each["ResourceQuota/server"]["spec"]["hard"]
        for each in (render(values.monolith(**VOLUME)), backed_up(**VOLUME))
    ]
    assert [int(each["pods"]) for each in hard] == [int(hard[0]["pods"]), int(hard[0]["pods"]) + 1]
    assert [int(each["persistentvolumeclaims"]) for each in hard][1] == int(hard[0]["persistentvolumeclaims"]) + 1
    storage = [int(each["requests.storage"].removesuffix("Gi")) for each in hard]
    assert storage[1] - storage[0] == 3


@pytest.mark.parametrize(
    "change", [{"suspended": {"message": "Please pay."}}, {"backup": values.BACKUP | {"paused": True}}]
)
def test_it_sleeps_with_its_server_or_for_a_while_and_keeps_its_volume(change: Object) -> None:
    rendered = backed_up(**change)
    assert rendered["Deployment/backup-agent"]["spec"]["replicas"] == 0
    assert "PersistentVolumeClaim/backup" in rendered


def test_what_it_read_at_its_start_starts_it_again() -> None:
    def notes(**changes: Any) -> Object:
        found: Object = backed_up(**changes).pods()["backup-agent"]["metadata"]["annotations"]
        return found

    before = notes()
    changes: list[Object] = [
        {"limits": {"maxUsers": 51}},
        {"secret": {"revision": "r2"}},
        {"backup": values.BACKUP | {"secret": {"revision": "b2"}}},
    ]
    assert all(notes(**each) != before for each in changes)
    assert notes(restarts=1) == before, "Synapse's restart is none of its own"
