"""MatrixServers for tests: what Hearth could write, as plain data. Needs no cluster and no Helm.

`monolith()` is the smallest server, `workers()` one with every group of processes, `managed()` one whose database,
Redis and certificate are made elsewhere. Each gives a fresh `spec`; `changed()` lays changes over it.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Mapping
from typing import Any

ORGANISATION = "6f1c3a52-5c1b-4d0e-9d39-3f8f5d1c0a11"
IMAGES = {
    "synapse": "images.example/synapse:v1.163.2",
    "redis": "images.example/redis:7.4",
    "postgres": "images.example/postgresql:17.6",
}
"""An example's names: nothing can be pulled from there."""

BACKUP = {
    "enabled": True,
    "image": "images.example/hearth-backup:1",
    "secret": {"revision": "b1"},
    "issuerRef": {"name": "hearth-internal"},
    "storage": {"size": "3Gi", "class": "encrypted"},
    "egress": {"ports": [443, 18000]},
}
"""What makes a server be backed up."""

RECOVERY: dict[str, Any] = {
    "image": "images.example/hearth-backup:1",
    "secret": {"revision": "v1"},
    "identity": "5b1d6f0e-7c1a-4c57-9a43-6d0f2a3b4c5d",
    "issuerRef": {"name": "hearth-internal"},
    "storage": {"size": "12Gi", "class": "encrypted"},
    "from": {"namespace": "hearth-5b1d6f0e-7c1a-4c57-9a43-6d0f2a3b4c5d"},
    "egress": {"ports": [443, 18000]},
}
"""What brings a server's database and media back."""


def monolith(**changes: Any) -> dict[str, Any]:
    """Return the smallest server that Hearth sells: one Synapse process, one PostgreSQL, media on S3."""
    spec: dict[str, Any] = {
        "serverName": "alice.example",
        "publicHost": "matrix.alice.example",
        "organisation": ORGANISATION,
        "federation": {"enabled": True},
        "synapse": {"version": "1.163.2", "schemaVersion": 94, "compatVersion": 84},
        "images": dict(IMAGES),
        "size": {"cpu": 2, "memory": "4Gi", "disk": "20Gi", "objectStorage": "100Gi"},
        "limits": {"maxUsers": 50, "maxUploadBytes": 104857600},
        "database": {"cluster": {"instances": 1, "storage": {"size": "10Gi", "class": "encrypted"}}},
        "media": {
            "s3": {
                "endpoint": "https://s3.example",
                "bucket": "hearth-media",
                "prefix": "servers/alice/",
                "region": "eu-1",
            }
        },
        "routing": {
            "ingress": {"class": "public"},
            "wellKnown": False,
            "certificate": {"issuerRef": {"name": "letsencrypt", "kind": "ClusterIssuer", "group": "cert-manager.io"}},
        },
        "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
        "secret": {"name": "synapse-secrets", "revision": "r1", "signingKeyId": "ed25519:a_Test"},
    }
    return changed(spec, changes)


def workers(**changes: Any) -> dict[str, Any]:
    """Return a large server: every group of processes, three database instances, both kinds of route."""
    spec = changed(
        monolith(),
        {
            "size": {"cpu": 16, "memory": "32Gi", "disk": "200Gi", "objectStorage": "1000Gi"},
            "workers": {
                "generic": {"min": 2, "max": 6},
                "federationSenders": 2,
                "mediaRepositories": 2,
                "eventPersisters": 2,
                "streamWriters": dict.fromkeys(
                    ("typing", "toDevice", "accountData", "receipts", "presence", "pushRules"), True
                ),
            },
            "database": {
                "cluster": {
                    "instances": 3,
                    "synchronous": True,
                    "readReplicas": True,
                    "antiAffinity": "required",
                    "storage": {"size": "100Gi", "class": "encrypted"},
                    "snapshots": {"class": "encrypted-snapshots", "schedule": "0 30 3 * * *"},
                    "cpu": 4,
                    "memory": "8Gi",
                }
            },
            "redis": {"own": {"persistence": True, "storage": {"size": "2Gi", "class": "encrypted"}}},
            "routing": {
                "ingress": {"class": "public", "regex": {"annotations": {"example.org/path-type": "regex"}}},
                "gateway": {"parentRefs": [{"name": "public", "namespace": "ingress", "sectionName": "https"}]},
                "wellKnown": True,
            },
            "priorityClass": "hearth-server",
        },
    )
    return changed(spec, changes)


def managed(**changes: Any) -> dict[str, Any]:
    """Return a server whose database and Redis are made elsewhere, behind a load balancer, with media on a volume."""
    spec = changed(
        monolith(),
        {
            "workers": {"federationSenders": 1, "eventPersisters": 1},
            "database": {"cluster": None, "managed": {"host": "db.example", "cidrs": ["10.9.0.0/24"]}},
            "redis": {"managed": {"host": "redis.example", "cidrs": ["10.9.1.0/24"]}},
            "media": {"s3": None, "volume": {"size": "20Gi", "class": "encrypted"}},
            "routing": {
                "ingress": None,
                "certificate": None,
                "certificateFromController": True,
                "loadBalancer": {"annotations": {"example.org/tls-certificate": "synapse"}},
            },
            "network": {"vpc": {"name": "alice", "cidr": "10.80.0.0/24"}, "apiServer": ["10.0.0.1/32"]},
        },
    )
    return changed(spec, changes)


def changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `base` with `changes` laid over it, mapping by mapping; None takes a key away."""
    result = copy.deepcopy(dict(base))
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            result[key] = changed(result.get(key) or {}, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def matrix_server(spec: Mapping[str, Any], namespace: str) -> dict[str, Any]:
    """Return the whole MatrixServer."""
    return {
        "apiVersion": "hearth.host/v1",
        "kind": "MatrixServer",
        "metadata": {"name": "synapse", "namespace": namespace},
        "spec": dict(spec),
    }


def values(spec: Mapping[str, Any], *, namespace: str = "", uid: str = "") -> dict[str, Any]:
    """Return the chart's values of one server. `spec` must be whole: see `provisioning.chart.schema.defaulted`."""
    server = {"name": "synapse", "namespace": namespace or f"hearth-{uuid.UUID(int=1)}", "uid": uid}
    return {"server": server | {"organisation": spec["organisation"]}, "spec": dict(spec)}
