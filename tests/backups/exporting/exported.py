"""An engine's part of an export: the sealed archive that it leaves in the store."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backups import places
from backups.engine import names
from backups.engine.objects import FILES, Vault
from backups.engine.stores.base import Store
from backups.models import Export
from provisioning.models import Operation
from provisioning.providers.base import Recovering
from security.datakeys import services
from security.streams import DataKey
from tests.backups.restoring.restorable import look
from tests.provisioning.fakes import ScriptedProvider


@contextlib.contextmanager
def store_of(export: Export) -> Iterator[Store]:
    with places.opened(export.restore.store, export.restore.source_id) as store:
        yield store


def seal(export: Export, data: bytes) -> dict[str, Any]:
    """Seal an archive as the engine does, with a key that it asked Hearth for; return what the engine tells."""
    server = export.restore.source
    name = f"{names.exports(str(export.pk))}{uuid.uuid4().hex[:8]}.tar"
    identity, opened = services.fresh(server.pk, names.EXPORT_PURPOSE, name)
    with opened, store_of(export) as store:
        vault = Vault(store=store, organisation=str(server.organisation_id), server=str(server.pk))
        ref = vault.put(name, [data], DataKey(identity, bytes(opened.value)), FILES, "")
    told = {"object": name, "stored": ref.size, "plain": ref.plain, "sha256": ref.sha256, "key": str(identity)}
    return told | {"files": 3, "last_commit": "2026-11-20T11:59:58.5+00:00"}


def carry_out(provider: ScriptedProvider, export: Export, data: bytes | None = None) -> bytes:
    """Carry an export out to its end, and return what is in its archive."""
    data = os.urandom(3 * 2**20 + 5) if data is None else data
    look(export.restore.operation)
    provider.recovered[str(export.restore.instance)] = Recovering("done", "archive", 9, 9, result=seal(export, data))
    operation = look(export.restore.operation, 2)
    assert operation.state == Operation.State.SUCCEEDED, operation.error
    export.refresh_from_db()
    return data


def objects(folder: Path, export: Export) -> list[str]:
    """What lies in the store of an export."""
    found = folder / str(export.restore.source_id) / "exports"
    return sorted(path.name for path in found.rglob("*.tar"))
