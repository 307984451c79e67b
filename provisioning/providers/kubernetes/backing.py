"""What backs a server up in a cluster: the second Secret, and what its MatrixServer says of it. Pure functions.

The chart (`provisioning/chart/templates/backup.yaml`) mounts things where the paths below are.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from provisioning.providers.base import ProviderError, ServerSpec
from provisioning.providers.kubernetes.place import Place

Object = dict[str, Any]
SECRET = "backup-secrets"  # noqa: S105 (its name)
ROLE = "hearth_backup"
FILES = "/etc/hearth-backup"
IDENTITY = "/etc/hearth-identity"
SETTINGS, USERNAME, PASSWORD = "settings.json", "username", "password"
OURS = (SETTINGS, USERNAME, PASSWORD, "media.json")
STORAGE_GB = 4
"""For the write-ahead log while the store is away (2 GiB), and the lists of media."""
PORT = 8009
CONFIGURATION = ("homeserver.yaml", "log.yaml", "signing.key")


def is_backed_up(spec: ServerSpec, place: Place) -> bool:
    """Tell whether a server here can be backed up. A pod reaches no folder, and a shared database gives no log."""
    store = (spec.backup.get("settings") or {}).get("store") or {}
    return bool(store.get("type") == "s3" and place.backup_image and place.backup_issuer and not place.postgres)


def content(spec: ServerSpec, place: Place, key_id: str) -> dict[str, bytes]:
    """Return the Secret's keys in plain. Raises `ProviderError` for what can't be understood."""
    try:
        files = {str(name): base64.b64decode(text, validate=True) for name, text in spec.backup["files"].items()}
        told = dict(spec.backup["settings"])
        name_key = files[told["name_key_file"]]
    except (KeyError, ValueError, TypeError, AttributeError):
        files = {}
    if not files or set(files) & set(OURS):
        raise ProviderError(
            "What is to back the server up can't be understood. Nothing was changed.", code="BadRequest", retry=False
        )
    media = _media(spec, place, files)
    told = {**_rooted(told), **_places(spec, place, key_id), **media}
    return {
        **files,
        USERNAME: ROLE.encode(),
        # Not the keyring's: this role's password has to be known as long as the key, and by nobody else.
        PASSWORD: hmac.digest(name_key, b"hearth database role for backups v1", hashlib.sha256).hex().encode(),
        SETTINGS: json.dumps(told, indent=1, sort_keys=True).encode(),
    }


def revision(found: Mapping[str, bytes]) -> str:
    """Return what changes with the Secret's content."""
    digest = hashlib.sha256()
    for name, data in sorted(found.items()):
        digest.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(data).digest())
    return digest.hexdigest()[:16]


def part(spec: ServerSpec, place: Place, key_id: str) -> Object:
    """Return `spec.backup` of the MatrixServer."""
    store = spec.backup["settings"]["store"]
    ports = sorted({port_of(store["endpoint"]), port_of(place.internal_address)})
    return {
        "enabled": True,
        "image": place.backup_image,
        "secret": {"name": SECRET, "revision": revision(content(spec, place, key_id))},
        "issuerRef": {"name": place.backup_issuer, "kind": "ClusterIssuer", "group": "cert-manager.io"},
        "storage": {"size": f"{STORAGE_GB}Gi", "class": place.storage_class},
        "egress": {"ports": ports},
    }


def port_of(address: str) -> int:
    """Return the port of a URL."""
    found = urlsplit(address)
    return found.port or (80 if found.scheme == "http" else 443)


def _rooted(told: Mapping[str, Any]) -> Object:
    """Return settings in which files that come with them are named by their whole paths."""
    found = {**told, "name_key_file": f"{FILES}/{told['name_key_file']}"}
    if name := told["store"].get("credentials_file"):
        found["store"] = {**told["store"], "credentials_file": f"{FILES}/{name}"}
    return found


def _places(spec: ServerSpec, place: Place, key_id: str) -> Object:
    return {
        "server": spec.server_id,
        "server_name": spec.server_name,
        "synapse_version": spec.version,
        "signing_key_id": key_id,
        "database": {
            "host": "postgres-rw",
            "user": ROLE,
            "password_file": f"{FILES}/{PASSWORD}",
            "sslmode": "verify-full",
            "sslrootcert": "/etc/synapse-database/ca.crt",
        },
        "tools": {"programs": "/opt/hearth/postgresql"},
        "state": "/var/lib/hearth-backup/state",
        "configuration": {name: f"/etc/synapse/{name}" for name in CONFIGURATION},
        "hearth": {
            "address": place.internal_address,
            "certificate": f"{IDENTITY}/tls.crt",
            "key": f"{IDENTITY}/tls.key",
            "trust": f"{IDENTITY}/ca.crt",
        },
        "serve": {"host": "0.0.0.0", "port": PORT},  # noqa: S104 (the pod's own; its network policy lets few in)
    }


def _media(spec: ServerSpec, place: Place, files: dict[str, bytes]) -> Object:
    """Return where media are; a bucket's keys become one file more."""
    if place.bucket is None:
        return {"media": "/var/lib/synapse/media"}
    bucket: Object = {
        "type": "s3",
        "name": "media",
        "endpoint": place.bucket.endpoint,
        "bucket": place.bucket.bucket,
        "prefix": f"servers/{spec.server_id}",
        "region": place.bucket.region,
    }
    if place.bucket.access_key:
        keys = {"access_key": place.bucket.access_key, "secret_key": place.bucket.secret_key}
        files["media.json"] = json.dumps(keys).encode()
        bucket["credentials_file"] = f"{FILES}/media.json"
    return {"media_bucket": bucket}
