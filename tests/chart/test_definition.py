"""What the API server takes for a MatrixServer, and the sentence it says to what it does not take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from provisioning.chart.schema import defaulted, definition
from tests.chart import values
from tests.cluster.api import Api, ApiError, Object

pytestmark = pytest.mark.xdist_group("cluster")
Spec = dict[str, Any]
SERVERS: dict[str, Callable[..., Spec]] = {
    "monolith": values.monolith,
    "workers": values.workers,
    "managed": values.managed,
}

WRONG: dict[str, tuple[Spec, str]] = {
    "small cpu": ({"size": {"cpu": 1}}, "spec.size.cpu"),
    "small memory": ({"size": {"memory": "3Gi"}}, "A server has at least 4Gi of memory."),
    "small disk": ({"size": {"disk": "19Gi"}}, "A server has at least 20Gi of disk."),
    "small object storage": ({"size": {"objectStorage": "99Gi"}}, "A server has at least 100Gi of object storage."),
    "both databases": ({"database": {"managed": {"host": "db"}}}, "Give either database.cluster"),
    "no database": ({"database": {"cluster": None}}, "Give either database.cluster"),
    "both media": ({"media": {"volume": {"size": "5Gi"}}}, "Give either media.s3"),
    "no image for the database": ({"images": {"postgres": None}}, "give images.postgres"),
    "no image for Redis": ({"images": {"redis": None}, "redis": {"own": {"persistence": False}}}, "give images.redis"),
    "workers without Redis": (
        {"workers": {"generic": {"min": 1, "max": 2}}},
        "Workers speak to each other through Redis",
    ),
    "upside down": (
        {"workers": {"generic": {"min": 3, "max": 2}}, "redis": {"managed": {"host": "r"}}},
        "workers.generic.min is above workers.generic.max",
    ),
    "too many processes": (
        {"workers": {"generic": {"min": 1, "max": 9}}, "redis": {"managed": {"host": "r"}}},
        "Too many processes for size.memory",
    ),
    "synchronous alone": ({"database": {"cluster": {"synchronous": True}}}, "A synchronous replica needs at least 2"),
    "replicas alone": ({"database": {"cluster": {"readReplicas": True}}}, "Read replicas need at least 2 instances"),
    "four instances": ({"database": {"cluster": {"instances": 4}}}, "instances"),
    "volume above the disk": (
        {"database": {"cluster": {"storage": {"size": "30Gi"}}}},
        "The database's volume is larger than size.disk",
    ),
    "two media repositories on a volume": (
        {
            "media": {"s3": None, "volume": {"size": "5Gi"}},
            "workers": {"mediaRepositories": 2},
            "redis": {"managed": {"host": "r"}},
        },
        "A media volume can be mounted by one process only",
    ),
    "persistence on nothing": ({"redis": {"own": {"persistence": True}}}, "A Redis with persistence needs"),
    "no way in": ({"routing": {"ingress": None}}, "Nobody could reach this server"),
    "no certificate": ({"routing": {"certificate": None}}, "Give exactly one of routing.certificate"),
    "two certificates": ({"routing": {"certificateSecret": "mine"}}, "Give exactly one of routing.certificate"),
    "workers behind a balancer alone": (
        {
            "routing": {"ingress": None, "loadBalancer": {}},
            "workers": {"generic": {"min": 1, "max": 2}},
            "redis": {"managed": {"host": "r"}},
        },
        "can't route paths to workers",
    ),
    "typing by a plain Ingress": (
        {"workers": {"streamWriters": {"typing": True}}, "redis": {"managed": {"host": "r"}}},
        "A plain Ingress can't send typing notices to their writer",
    ),
    "backups without an agent": ({"backup": {"enabled": True}}, "Backups need backup.image, backup.secret"),
    "backups of a managed database": (
        {"backup": values.BACKUP, "database": {"cluster": None, "managed": {"host": "db.example"}}},
        "Only a database cluster can be backed up",
    ),
    "a managed database brought back": (
        {"recovery": values.RECOVERY, "database": {"cluster": None, "managed": {"host": "db.example"}}},
        "Only a database cluster can be made from a backup",
    ),
    "brought back and suspended": ({"recovery": values.RECOVERY, "suspended": {}}, "can be neither suspended nor"),
    "brought back and backed up": (
        {"recovery": values.RECOVERY, "backup": values.BACKUP},
        "can be neither suspended nor backed up",
    ),
    "brought back to nowhere": (
        {"recovery": {**values.RECOVERY, "storage": None}},
        "What is brought back needs recovery.storage",
    ),
    "compatible with the future": ({"synapse": {"compatVersion": 95}}, "compatVersion can't be above schemaVersion"),
    "a release that is too old": (
        {"synapse": {"releaseSchemaVersion": 83}},
        "This release of Synapse does not know the database's schema",
    ),
    "a version that is none": ({"synapse": {"version": "latest"}}, "spec.synapse.version"),
    "a name that is none": ({"serverName": "Alice!"}, "spec.serverName"),
    "an unknown field": ({"colour": "red"}, "field not declared in schema"),
}

CHANGES: dict[str, tuple[str, Spec, str]] = {
    "another name": ("monolith", {"serverName": "bob.example"}, "can never change"),
    "another organisation": (
        "monolith",
        {"organisation": "00000000-0000-0000-0000-000000000000"},
        "A server stays with its organisation",
    ),
    "an older schema": ("monolith", {"synapse": {"schemaVersion": 93}}, "upgraded to a newer schema and can't go back"),
    "a lower compat": ("monolith", {"synapse": {"compatVersion": 83}}, "compatVersion is written into the database"),
    "an older release unsaid": (
        "monolith",
        {"synapse": {"version": "1.149.1"}},
        "To go back, say with releaseSchemaVersion",
    ),
    "a smaller volume": (
        "monolith",
        {"database": {"cluster": {"storage": {"size": "9Gi"}}}},
        "A volume can grow but not shrink",
    ),
    "another class": (
        "monolith",
        {"database": {"cluster": {"storage": {"class": "cheap"}}}},
        "The storage class of a volume can't change",
    ),
    "another prefix": (
        "monolith",
        {"media": {"s3": {"prefix": "servers/bob/"}}},
        "Bucket and prefix of media can't change",
    ),
    "media to a volume": (
        "monolith",
        {"media": {"s3": None, "volume": {"size": "5Gi"}}},
        "Moving media between S3 and",
    ),
    "another database": (
        "monolith",
        {"database": {"cluster": None, "managed": {"host": "db"}}},
        "would leave the data behind",
    ),
    "another network": (
        "managed",
        {"network": {"vpc": {"cidr": "10.81.0.0/24"}}},
        "The network of a server can't change",
    ),
    "no network of its own any more": (
        "managed",
        {"network": {"vpc": None}},
        "A server keeps the network that it was made in",
    ),
    "a network of its own later": (
        "monolith",
        {"network": {"vpc": {"name": "alice", "cidr": "10.81.0.0/24"}}},
        "A server keeps the network that it was made in",
    ),
}

ALLOWED: dict[str, Spec] = {
    "more of everything": {
        "size": {"cpu": 8, "memory": "16Gi", "disk": "80Gi"},
        "database": {"cluster": {"instances": 3, "storage": {"size": "40Gi"}}},
    },
    "workers": {"workers": {"generic": {"min": 1, "max": 2}}, "redis": {"managed": {"host": "r"}}},
    "a newer release": {"synapse": {"version": "1.170.0", "schemaVersion": 95, "compatVersion": 84}},
    "the way back": {"synapse": {"version": "1.149.1", "releaseSchemaVersion": 93}},
    "suspended": {"suspended": {}},
    "closed and unrouted": {"closed": True, "routing": {"unrouted": True}},
    "brought back": {"recovery": values.RECOVERY},
    "settled": {"recovery": {**values.RECOVERY, "storage": None, "settle": True}},
}


def applied(api: Api, spec: Spec, namespace: str, *, dry_run: bool = False) -> Object:
    """Write a MatrixServer as Hearth does, strictly."""
    each = values.matrix_server(spec, namespace)
    path = api.path("hearth.host/v1", "MatrixServer", namespace, "synapse")
    options = {"fieldManager": "tests", "force": "true", "fieldValidation": "Strict"}
    options |= {"dryRun": "All"} if dry_run else {}
    headers = {"Content-Type": "application/apply-patch+yaml"}
    return api.request("PATCH", path, params=options, json=each, headers=headers)


@pytest.mark.parametrize("name", SERVERS)
def test_the_defaults_are_those_that_the_chart_lays_under_its_values(name: str, api: Api, namespace: str) -> None:
    spec = SERVERS[name]()
    assert applied(api, spec, namespace, dry_run=True)["spec"] == defaulted(spec)


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_spec_gets_a_sentence(case: str, api: Api) -> None:
    change, sentence = WRONG[case]
    with pytest.raises(ApiError) as refused:
        applied(api, values.monolith(**change), "default", dry_run=True)
    assert refused.value.status in (400, 422, 500)
    assert sentence in refused.value.message


def test_another_name_is_refused(api: Api, namespace: str) -> None:
    each = values.matrix_server(values.monolith(), namespace)
    each["metadata"]["name"] = "second"
    with pytest.raises(ApiError, match="it is called 'synapse'"):
        api.apply(each, dry_run=True)


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_that_would_lose_something_is_refused(case: str, api: Api, namespace: str) -> None:
    name, change, sentence = CHANGES[case]
    applied(api, SERVERS[name](), namespace)
    with pytest.raises(ApiError) as refused:
        applied(api, SERVERS[name](**change), namespace, dry_run=True)
    assert sentence in refused.value.message
    assert "othing was changed" in refused.value.message


@pytest.mark.parametrize("case", ALLOWED)
def test_a_change_that_is_safe_is_taken(case: str, api: Api, namespace: str) -> None:
    applied(api, values.monolith(), namespace)
    applied(api, values.monolith(**ALLOWED[case]), namespace, dry_run=True)


def test_every_message_of_a_rule_is_a_sentence() -> None:
    def rules(schema: Any) -> list[str]:
        if isinstance(schema, list):
            return [each for one in schema for each in rules(one)]
        if not isinstance(schema, dict):
            return []
        own = [each["message"] for each in schema.get("x-kubernetes-validations", [])]
        return own + [each for one in schema.values() for each in rules(one)]

    messages = rules(definition())
    assert len(messages) > 20
    assert [each for each in messages if not each.endswith(".") or len(each.split()) < 4] == []


def test_scale_and_status_and_columns(api: Api, namespace: str) -> None:
    applied(api, values.workers(), namespace)
    path = api.path("hearth.host/v1", "MatrixServer", namespace, "synapse")
    assert api.request("GET", f"{path}/scale")["spec"]["replicas"] == 2
    merge = {"Content-Type": "application/merge-patch+json"}
    api.request("PATCH", f"{path}/scale", json={"spec": {"replicas": 3}}, headers=merge)
    condition = {
        "type": "Ready", "status": "False", "reason": "DatabaseDown", "message": "x",
        "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 2,
    }  # fmt: skip
    status = {
        "observedGeneration": 2,
        "version": "1.163.2",
        "replicas": 2,
        "selector": "a=b",
        "conditions": [condition],
    }
    api.request("PATCH", f"{path}/status", json={"status": status, "spec": {"restarts": 9}}, headers=merge)
    after = api.request("GET", path)
    assert (after["spec"]["workers"]["generic"]["min"], after["spec"]["restarts"], after["status"]) == (3, 0, status)
    assert api.request("GET", f"{path}/scale")["status"] == {"replicas": 2, "selector": "a=b"}
    table = api.request("GET", path, headers={"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"})
    shown = dict(zip([each["name"] for each in table["columnDefinitions"]], table["rows"][0]["cells"], strict=True))
    assert (shown["Server name"], shown["Version"], shown["Ready"], shown["Reason"], shown["Workers"]) == (
        "alice.example", "1.163.2", "False", "DatabaseDown", 2,
    )  # fmt: skip
