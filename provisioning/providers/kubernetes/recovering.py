"""What brings a server in a cluster back: the recovery's Secret, and what a MatrixServer says of it. Pure functions.

docs/matrix-server.md says where the pod finds what is named here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from provisioning.providers import base
from provisioning.providers.base import ProviderError, Recovering, Recovery, ServerSpec
from provisioning.providers.kubernetes import backing, objects
from provisioning.providers.kubernetes.place import Place

Object = dict[str, Any]
SECRET = "recovery-secrets"  # noqa: S105 (its name)
REQUEST, PASSWORD = "request.json", "password"
FOLDER = "/var/lib/hearth-recovery"
LOG_GIB = 4
"""Room for what is replayed: `max_wal_size` (2 GB) and the segments that were fetched ahead, beside the database."""
SINCE = Path(base.__file__).with_name("since.sql")


def refuse(spec: ServerSpec, recovery: Recovery, place: Place) -> None:
    """Raise `ProviderError` where a server can't be brought back."""
    store = recovery.request.get("store") or {}
    why = ""
    if place.postgres:
        why = "Databases of this region are in its own PostgreSQL, into which nothing can be copied back"
    elif place.bucket:
        why = "Files of this region are in a bucket, into which no restore writes yet"
    elif spec.network:
        why = "Servers of this region have networks of their own, between which nothing can be copied yet"
    elif not (place.backup_image and place.backup_issuer):
        why = "This region says neither image nor issuer of backup engines"
    elif store.get("type") != "s3":
        why = "A cluster's pods reach no folder of Hearth's machine, and the backups are in one"
    if why:
        raise ProviderError(
            f"{why}. So servers here can't be brought back. Nothing was changed, and the backups are safe. Support can "
            "restore them elsewhere.",
            code="NotHere",
            retry=False,
        )


def secret(spec: ServerSpec, recovery: Recovery, place: Place, at: str) -> tuple[Object, str]:
    """Return the Secret, and its revision: another one with each call, so that each is answered by itself."""
    try:
        files = {str(name): base64.b64decode(text, validate=True) for name, text in recovery.files.items()}
    except ValueError:
        files = {REQUEST: b""}
    if set(files) & {REQUEST, PASSWORD}:
        raise ProviderError(
            "What is to be brought back can't be understood. Nothing was changed.", code="BadRequest", retry=False
        )
    # The same over all calls of one recovery, and known to nobody who does not know the server's own.
    told = f"hearth recovery copy v1 {spec.server_id}".encode()
    password = hmac.digest(spec.secrets["database"].encode(), told, hashlib.sha256).hex()
    content = {
        **files,
        REQUEST: json.dumps(_request(spec, recovery, place), indent=1, sort_keys=True).encode(),
        PASSWORD: password.encode(),
    }
    found = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": SECRET, "namespace": at, "labels": objects.labels(spec)},
        "data": {name: base64.b64encode(data).decode() for name, data in content.items()},
    }
    return found, f"{backing.revision(content)}-{secrets.token_hex(4)}"


def part(recovery: Recovery, place: Place, revision: str, *, spec: Mapping[str, Any], settle: bool) -> Object:
    """Return `spec.recovery` of the MatrixServer, with None for what it lacks. `spec`: all that it says now."""
    living = _living(recovery)
    ports = {backing.port_of(str(recovery.request["store"]["endpoint"])), backing.port_of(place.internal_address)}
    # A volume that is there stays as it is.
    volume = (spec.get("recovery") or {}).get("storage") or _volume(spec["database"]["cluster"]["storage"])
    return {
        "image": place.backup_image,
        "secret": {"name": SECRET, "revision": revision},
        "settle": True if settle else None,
        "cancelled": None,
        "identity": recovery.holder,
        "issuerRef": {"name": place.backup_issuer, "kind": "ClusterIssuer", "group": "cert-manager.io"},
        "storage": None if settle else volume,
        "from": {"namespace": living} if living else None,
        "storeAuthority": (place.overlay.get("backup") or {}).get("storeAuthority"),
        "egress": {"ports": sorted(ports)},
    }


def _volume(database: Mapping[str, Any]) -> Object:
    gib = int(str(database["size"]).removesuffix("Gi"))
    return {**database, "size": f"{gib + LOG_GIB}Gi"}


def goes_on(server: Mapping[str, Any]) -> bool:
    """Tell whether an instance's MatrixServer is still being brought back: else what is there is only settled."""
    wanted = server["spec"].get("recovery")
    return bool(wanted) and not wanted.get("settle") and told(server, exchanged=False).state != "done"


def told(server: Mapping[str, Any], *, exchanged: bool) -> Recovering:
    """Return how far it is, as the operator has written it down."""
    wanted = server["spec"].get("recovery")
    said = (server.get("status") or {}).get("recovery") or {}
    if wanted and said.get("revision") != wanted["secret"]["revision"]:
        # Nobody has looked at it yet, or what is told is of the call before.
        return Recovering(state="running", step="plan", exchanged=exchanged)
    state = str(said.get("state") or "none")
    left = said.get("secondsLeft")
    failed = state == "failed"
    return Recovering(
        state=state,
        step=str(said.get("step") or ""),
        done_bytes=int(said.get("doneBytes") or 0),
        total_bytes=int(said.get("totalBytes") or 0),
        seconds_left=None if left is None else int(left),
        code=str(said.get("code") or "") if failed else "",
        text=str(said.get("text") or "") if failed else "",
        retry=failed and bool(said.get("retry")),
        result=(said.get("result") or {}) if state == "done" else {},
        exchanged=exchanged,
    )


def _living(recovery: Recovery) -> str:
    since = (recovery.request.get("settle") or {}).get("since") or {}
    return str((since.get("from") or {}).get("namespace") or "")


def _request(spec: ServerSpec, recovery: Recovery, place: Place) -> Object:
    settle: Object = {**(recovery.request.get("settle") or {}), "passwords": {"synapse": spec.secrets["database"]}}
    if living := _living(recovery):
        asked = {
            "host": f"postgres-rw.{living}.svc",
            "user": "synapse",
            "password": spec.secrets["database"],  # an instance has all its server's secrets
            "database": "synapse",
            "query": SINCE.read_text(encoding="utf-8"),
        }
        settle["since"] = {**settle["since"], "from": asked}
    return {
        **recovery.request,
        "data": f"{FOLDER}/postgres",
        "work": f"{FOLDER}/work",
        "media": "/var/lib/synapse/media",
        "configuration": "",
        "superuser": "postgres",
        "tools": {"programs": "/opt/hearth/postgresql"},
        "hearth": {
            "address": place.internal_address,
            "certificate": f"{backing.IDENTITY}/tls.crt",
            "key": f"{backing.IDENTITY}/tls.key",
            "trust": f"{backing.IDENTITY}/ca.crt",
        },
        "settle": settle,
    }
