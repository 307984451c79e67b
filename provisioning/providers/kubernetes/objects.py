"""The three objects that Hearth writes for a server. Pure functions: spec and region in, plain dicts out."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import yaml

from provisioning.providers.base import ProviderError, ServerSpec
from provisioning.providers.kubernetes import backing
from provisioning.providers.kubernetes.place import Place
from provisioning.providers.local.keys import verify_key
from tenants.releases import Release, ReleaseRefused, find

Object = dict[str, Any]
API = "hearth.host/v1"
NAME, SECRET = "synapse", "synapse-secrets"
SERVER, ORGANISATION = "hearth.host/server", "hearth.host/organisation"
STOPPED = "hearth.host/stopped"
"""On a MatrixServer that was told to stop: its next start starts every process again."""
INSTANCE_OF = "hearth.host/instance-of"
"""On the Namespace and the MatrixServer of an instance: the id of its server."""
FINALIZER = "hearth.host/final-backup"
MANAGED, HEARTH = "app.kubernetes.io/managed-by", "hearth"
UPLOAD_BYTES = 100 * 1024 * 1024
REDIS_GB, CACHE_GB = 1, 5
WORKERS_FROM_VCPU, WORKERS_FROM_MB = 4, 8192
"""A server of this size has generic workers, a Redis, and with federation a sender."""
MOST_WORKERS = 50
PROCESS_MB = 512
"""Memory that a process should have at least when Hearth decides how many there may be; the definition says 384."""


def namespace_of(server_id: str) -> str:
    """Return the name of a server's namespace."""
    return f"hearth-{server_id}"


def database_name(server_id: str) -> str:
    """Return the name of a server's database, and of its user, in the region's own PostgreSQL."""
    return f"hearth_{server_id.replace('-', '')}"


def public_host(spec: ServerSpec, place: Place) -> str:
    """Return the host that clients use: the server name where it is under the region's domain, else one of ours.

    A customer's own domain points to it by delegation, so that their DNS need not change when a server moves.
    """
    if spec.server_name.endswith(f".{place.base_domain}"):
        return spec.server_name
    return f"m-{spec.server_id.replace('-', '')}.{place.base_domain}"


def namespace(spec: ServerSpec, at: str = "") -> Object:
    """Return the Namespace: Pod Security `restricted`, and whose it is. `at`: where it was another's first."""
    modes = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    said = {**modes, **labels(spec)}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": at or namespace_of(spec.server_id), "labels": said},
    }


def secret(spec: ServerSpec, place: Place, at: str = "") -> Object:
    """Return the server's one Secret."""
    data = {key: base64.b64encode(value.encode()).decode() for key, value in _content(spec, place).items()}
    said = {**labels(spec), "cnpg.io/reload": "true"}
    metadata = {"name": SECRET, "namespace": at or namespace_of(spec.server_id), "labels": said}
    # This type lets CloudNativePG take name and password of the database's user from it.
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/basic-auth",
        "metadata": metadata,
        "data": data,
    }


def backup_secret(spec: ServerSpec, place: Place, at: str = "") -> Object | None:
    """Return the Secret that only the agent and the database's operator read; None for a server without backups."""
    if not backing.is_backed_up(spec, place):
        return None
    found = backing.content(spec, place, signing_key_id(spec))
    said = {**labels(spec), "cnpg.io/reload": "true"}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/basic-auth",
        "metadata": {"name": backing.SECRET, "namespace": at or namespace_of(spec.server_id), "labels": said},
        "data": {key: base64.b64encode(value).decode() for key, value in found.items()},
    }


def revision(spec: ServerSpec, place: Place) -> str:
    """Return what changes with the Secret's content and tells nothing about it: most of it is random words."""
    content = json.dumps(_content(spec, place), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def matrix_server(
    spec: ServerSpec, place: Place, before: Mapping[str, Any] | None = None, *, at: str = "", instance: bool = False
) -> Object:
    """Return the MatrixServer. `before` is the spec that the cluster has: what may never go down is taken from it.

    `at`: its namespace, where that was born as another's. `instance`: nobody outside may reach it.
    """
    workers, redis = _workers(spec, place)
    wanted: Object = {
        "serverName": spec.server_name,
        "publicHost": public_host(spec, place),
        "organisation": spec.organisation_id,
        "federation": {"enabled": spec.federation},
        "synapse": _synapse(spec, before),
        "images": _images(spec, place, redis=bool(redis)),
        "size": {
            "cpu": spec.vcpu,
            "memory": f"{spec.memory_mb}Mi",
            "disk": f"{spec.disk_gb}Gi",
            "objectStorage": f"{spec.object_gb}Gi",
        },
        "limits": {"maxUsers": spec.users, "maxUploadBytes": UPLOAD_BYTES},
        "workers": workers,
        "database": _database(spec, place, before, redis=bool(redis)),
        "redis": redis,
        "media": _media(spec, place),
        "routing": _routing(place) | ({"unrouted": True} if instance else {}),
        "network": _network(spec, place, at or namespace_of(spec.server_id)),
        "monitoring": {"enabled": True} if place.monitoring else None,
        "priorityClass": place.priority_class,
        "secret": {"name": SECRET, "revision": revision(spec, place), "signingKeyId": signing_key_id(spec)},
        "backup": backing.part(spec, place, signing_key_id(spec)) if backing.is_backed_up(spec, place) else None,
        "suspended": {"message": spec.suspend_message} if spec.suspended else None,
    }
    found = laid_over(without_nothing(wanted), _named(place.overlay, spec.server_id))
    # From its first moment on: its operator takes it away after the last backup.
    metadata = {
        "name": NAME,
        "namespace": at or namespace_of(spec.server_id),
        "labels": labels(spec),
        "finalizers": [FINALIZER],
    }
    return {"apiVersion": API, "kind": "MatrixServer", "metadata": metadata, "spec": found}


def signing_key_id(spec: ServerSpec) -> str:
    """Return the id of the key that this server signs with for ever."""
    return verify_key(spec.secrets["signing_key"])[0]


def release_of(version: str) -> Release:
    """Return what Hearth knows of a release, or raise `ProviderError`."""
    try:
        return find(version)
    except ReleaseRefused as refusal:
        raise ProviderError(f"{refusal} Nothing was changed.", code="VersionUnknown", retry=False) from None


def laid_over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Object:
    """Return `base` with `changes` laid over it, mapping by mapping; None takes a key away."""
    found = dict(base)
    for key, value in changes.items():
        if value is None:
            found.pop(key, None)
        elif isinstance(value, Mapping):
            under = found.get(key)
            found[key] = laid_over(under if isinstance(under, Mapping) else {}, value)
        else:
            found[key] = value
    return found


def labels(spec: ServerSpec) -> dict[str, str]:
    """Return what each of a server's objects says of whose it is."""
    return {SERVER: spec.server_id, ORGANISATION: spec.organisation_id, MANAGED: HEARTH}


def _content(spec: ServerSpec, place: Place) -> dict[str, str]:
    """Return the Secret's keys in plain; docs/matrix-server.md names them."""
    secrets = spec.secrets
    signs_in = {"jwt_config": {"enabled": True, "secret": secrets["jwt"], "algorithm": "HS256"}}
    content = {
        "signing.key": secrets["signing_key"] + "\n",
        **{name: secrets[name] for name in ("macaroon", "registration", "form", "replication", "redis")},
        "redis.conf": f"requirepass {secrets['redis']}\n",
        "username": database_name(spec.server_id) if place.postgres else "synapse",
        "password": secrets["database"],
        "extra.yaml": yaml.safe_dump(signs_in),
    }
    if place.postgres and place.postgres.authority:
        content["database-ca.crt"] = place.postgres.authority
    if place.bucket and place.bucket.access_key:
        keys = f"aws_access_key_id = {place.bucket.access_key}\naws_secret_access_key = {place.bucket.secret_key}\n"
        content["s3-credentials"] = f"[default]\n{keys}"
    return content


def _synapse(spec: ServerSpec, before: Mapping[str, Any] | None) -> Object:
    release = release_of(spec.version)
    ran = (before or {}).get("synapse") or {}
    schema = max(release.schema, int(ran.get("schemaVersion") or 0))
    compat = max(release.compat, int(ran.get("compatVersion") or 0))
    found: Object = {"version": spec.version, "schemaVersion": schema, "compatVersion": compat}
    # Going back is said once, when it happens, and stays said while the older release runs.
    back = bool(ran) and _number(spec.version) < _number(str(ran.get("version")))
    still = ran.get("version") == spec.version and "releaseSchemaVersion" in ran
    if back or still or release.schema < schema:
        found["releaseSchemaVersion"] = release.schema
    return found


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("rc")[0].split(".") if part.isdigit())


def _images(spec: ServerSpec, place: Place, *, redis: bool) -> Object:
    found = {"synapse": place.synapse_image.replace("{version}", spec.version)}
    found |= {} if place.postgres else {"postgres": place.postgres_image}
    return found | ({"redis": place.redis_image} if redis else {})


def _workers(spec: ServerSpec, place: Place) -> tuple[Object | None, Object | None]:
    """Return the workers and their Redis. How many generic ones run between the bounds the autoscaler alone decides."""
    if not place.redis_image or spec.vcpu < WORKERS_FROM_VCPU or spec.memory_mb < WORKERS_FROM_MB:
        return None, None
    if spec.workers == 0:
        return None, None
    senders = int(spec.federation)
    most = max(1, min(spec.vcpu - 1, spec.memory_mb // PROCESS_MB - 2 - senders, spec.workers or MOST_WORKERS))
    disk = {"size": f"{REDIS_GB}Gi", "class": place.storage_class}
    workers = {"generic": {"min": 1, "max": most}, "federationSenders": senders}
    return workers, {"own": {"persistence": True, "storage": disk}}


def _database(spec: ServerSpec, place: Place, before: Mapping[str, Any] | None, *, redis: bool) -> Object:
    """Return the database; it has the disk that the server has, less what else lies on it."""
    if place.postgres:
        name = database_name(spec.server_id)
        ours = {"host": place.postgres.host, "port": place.postgres.port, "name": name, "user": name}
        return {"managed": {**ours, "tls": "verify-full", "cidrs": list(place.postgres.ranges) or None}}
    room = spec.disk_gb - (REDIS_GB if redis else 0)
    had = (((before or {}).get("database") or {}).get("cluster") or {}).get("storage") or {}
    # Volumes never shrink: where a Redis comes later, the database keeps what it has.
    size = max(room if place.bucket else room // 2, int(str(had.get("size", "0Gi")).removesuffix("Gi")))
    found = {
        "instances": spec.database_instances,
        "synchronous": True if spec.database_synchronous else None,
        "readReplicas": True if spec.database_replicas else None,
        "storage": {"size": f"{size}Gi", "class": place.storage_class},
        "snapshots": {"class": place.snapshot_class} if place.snapshot_class else None,
    }
    return {"cluster": found}


def _network(spec: ServerSpec, place: Place, at: str) -> Object:
    """Return who may reach the server's pods and what they may reach, as far as the region says it."""
    return {
        "vpc": {"name": at, "cidr": spec.network} if spec.network else None,
        "ingressNamespace": place.ingress_namespace,
        "monitoringNamespace": place.monitoring_namespace,
        "hearthNamespace": place.hearth_namespace,
        "dnsAddresses": list(place.dns_addresses) or None,
        "apiServer": list(place.api_server_ranges) or None,
    }


def _media(spec: ServerSpec, place: Place) -> Object:
    if place.bucket is None:
        return {"volume": {"size": f"{spec.disk_gb // 2}Gi", "class": place.storage_class}}
    bucket = place.bucket
    prefix = f"servers/{spec.server_id}/"
    return {
        "s3": {"endpoint": bucket.endpoint, "bucket": bucket.bucket, "prefix": prefix, "region": bucket.region},
    }


def _routing(place: Place) -> Object:
    namespace, _, gateway = place.gateway.partition("/")
    issuer = {"issuerRef": {"name": place.issuer, "kind": "ClusterIssuer", "group": "cert-manager.io"}}
    return {
        "ingress": {"class": place.ingress_class} if place.ingress_class else None,
        "gateway": {"parentRefs": [{"name": gateway, "namespace": namespace}]} if gateway else None,
        # Under our domain the server name is the host itself; on their own domain the customer delegates.
        "wellKnown": False,
        "certificate": issuer if place.issuer else None,
        "certificateFromController": None if place.issuer else True,
    }


def without_nothing(value: Mapping[str, Any]) -> Object:
    """Return a part of a spec without what it says nothing of."""
    found = {key: without_nothing(each) if isinstance(each, Mapping) else each for key, each in value.items()}
    return {key: each for key, each in found.items() if each is not None and each != ""}


def _named(value: Any, server_id: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _named(each, server_id) for key, each in value.items()}
    if isinstance(value, list):
        return [_named(each, server_id) for each in value]
    return value.replace("{server}", server_id) if isinstance(value, str) else value
