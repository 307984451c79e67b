"""What a server's engine is told: which store, how often, and the key of its media's names."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from backups import policies
from backups.models import ServerBackups, Store
from backups.regions import stores_of
from tenants.models import Server

MODULE = "backups.engine"
NAME_KEY, CREDENTIALS = "name.key", "store.json"
NAME_KEY_BYTES = 32
SYNC_ON_THIS_MACHINE = 10.0
"""Seconds between an engine's reports where the store is a folder: its few servers' orders need not wait a minute."""


@sensitive_variables()
def backup_of(server: Server) -> dict[str, Any]:
    """Return `ServerSpec.backup`; empty where the region has no store. The provider adds where things are."""
    stores = stores_of(server)
    if stores is None:
        return {}
    row, policy = ensure(server), policies.policy_of(server)
    files = {NAME_KEY: str(row.name_key)}
    local = stores.first.kind == Store.Kind.FOLDER
    reports = SYNC_ON_THIS_MACHINE if local else settings.HEARTH["HEARTH_BACKUP_REPORT_SECONDS"]
    pace: dict[str, float] = {"base_every": policy.every_hours * 3600, "sync_every": reports}
    told = {
        "organisation": str(server.organisation_id),
        "synapse_version": server.version,
        "name_key_file": NAME_KEY,
        "policy": pace,
        "store": store_at(stores.first, server, files, make=True),
    }
    return {"module": MODULE, "settings": told, "files": files}


@transaction.atomic
@sensitive_variables()
def ensure(server: Server) -> ServerBackups:
    """Return the server's row, made with a name key when it is missing. That key never changes: names would too."""
    row, _ = ServerBackups.objects.get_or_create(server=server)
    if row.name_key:
        return row
    row = ServerBackups.objects.select_for_update(of=("self",)).get(pk=row.pk)
    if not row.name_key:
        row.name_key = base64.b64encode(os.urandom(NAME_KEY_BYTES)).decode()
        row.next_base = row.next_base or policies.next_base(policies.policy_of(server), server.pk, timezone.now())
        row.save(update_fields=["name_key", "next_base"])
    return row


@sensitive_variables()
def store_at(store: Store, server: Server, files: dict[str, str], *, make: bool = False) -> dict[str, Any]:
    """Return how an engine finds what a store holds of a server, and put the credentials for it into `files`."""
    if store.kind == Store.Kind.FOLDER:
        folder = Path(store.folder)
        # A disk that is not mounted must not be taken for an empty one; Hearth's own folder may be made.
        make = make and (folder.is_dir() or folder.is_relative_to(settings.STATE))
        return {"type": "folder", "name": store.code, "path": str(folder / str(server.pk)), "make": make}
    told = {
        "type": "s3",
        "name": store.code,
        "endpoint": store.endpoint,
        "bucket": store.bucket,
        "region": store.location,
        "prefix": str(server.pk),
    }
    if store.agent_access_key:
        keys = {"access_key": store.agent_access_key, "secret_key": str(store.agent_secret_key or "")}
        files[CREDENTIALS] = base64.b64encode(json.dumps(keys).encode()).decode()
        told["credentials_file"] = CREDENTIALS
    return told
