"""Stores as Hearth's own workers use them: with the credentials that may remove what has expired."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from audit.services import record
from backups import reachable
from backups.copying import verbs
from backups.engine.stores import base
from backups.engine.stores.base import StoreError
from backups.engine.stores.folder import FolderStore
from backups.engine.stores.memory import TOTAL
from backups.models import RegionStores, Store
from tenants.errors import Refused

COLUMNS = ("code", "name", "kind", "folder", "endpoint", "bucket", "location", "access_key", "agent_access_key")
SECRETS = ("secret_key", "agent_secret_key")
PLACE = ("code", "kind", "folder", "endpoint", "bucket")
"""What says where backups lie: it stays while a region uses the store."""
OWN = "hearth-check"


@contextlib.contextmanager
@sensitive_variables()
def opened(store: Store, server: uuid.UUID, *, make: bool = False, memory: int = TOTAL) -> Iterator[base.Store]:
    """Open what a store holds of one server. Raises `StoreError`, `SecurityError`.

    A folder is made only with `make`, and only where the store was checked: that mark is on its disk. `memory` bounds
    what a bucket's calls together hold, in bytes.
    """
    if store.kind == Store.Kind.FOLDER:
        root = Path(store.folder)
        yield FolderStore(store.code, root / str(server), make=make and (root / OWN).is_dir())
        return
    with contextlib.closing(_bucket(store, str(server), memory)) as found:
        yield found


@sensitive_variables()
def _bucket(store: Store, prefix: str, memory: int = TOTAL) -> Any:
    from backups.engine.stores.connection import Bucket, Credentials  # noqa: PLC0415 (boto3 is large; few need it)
    from backups.engine.stores.s3 import S3Store  # noqa: PLC0415

    given = Credentials(store.access_key, str(store.secret_key or "")) if store.access_key else None
    where = Bucket(
        store.bucket,
        endpoint=store.endpoint,
        region=store.location or "us-east-1",
        prefix=prefix,
        credentials=given,
        tries=3,
    )
    return S3Store(store.code, where, memory=memory)


@sensitive_variables()
def check(actor: Any, *, store: Store) -> Store:
    """Ask a store which protections it has, and write down what it said, or why it can't be used."""
    try:
        found, fault = _asked(store), ""
    except StoreError as error:
        found, fault = store.findings, str(error)
    with transaction.atomic():
        row = Store.objects.select_for_update().get(pk=store.pk)
        row.findings, row.fault, row.checked = found, fault, timezone.now()
        row.save(update_fields=["findings", "fault", "checked"])
        record(actor=actor, verb="backups.store-check", object=row, after={"fault": fault, "findings": len(found)})
    return row


def _asked(store: Store) -> list[dict[str, str]]:
    if store.kind == Store.Kind.FOLDER:
        root = Path(store.folder)
        if not root.is_dir() and not root.is_relative_to(settings.STATE):
            text = f"The folder {root} is not there. Mount its disk, or correct the path. Nothing was written."
            raise StoreError(text, code="StoreMissing", retry=False)
        found = FolderStore(store.code, root / OWN, make=True).check()
    else:
        with contextlib.closing(_bucket(store, OWN)) as bucket:
            found = bucket.check()
    return [{"what": each.what, "state": each.state, "text": each.text} for each in found]


@sensitive_variables()
@transaction.atomic
def save_store(actor: Any, *, store: Store, secrets: dict[str, str] | None = None, **columns: str) -> Store:
    """Make or change a store. Secrets that are not given stay. Where backups lie can't change while it is used."""
    known = Store.objects.select_for_update().filter(pk=store.pk).first()
    row = known or Store(pk=store.pk)
    before = _shown(known) if known else {}
    for name in COLUMNS:
        setattr(row, name, columns.get(name, getattr(row, name)))
    refuse(row, before)
    given = {name: value for name, value in (secrets or {}).items() if name in SECRETS and value}
    for name, value in given.items():
        setattr(row, name, value)
    row.save()
    after = _shown(row) | dict.fromkeys(given, "replaced")
    record(actor=actor, verb="backups.store", object=row, before=before, after=after)
    return row


def refuse(row: Store, before: dict[str, str]) -> None:
    """Raise `Refused` for a store that can't be, or would leave backups behind."""
    if row.kind == Store.Kind.FOLDER and not row.folder.startswith("/"):
        raise Refused("Give the folder's whole path, such as /srv/backups. Nothing was changed.", field="folder")
    if row.kind == Store.Kind.S3 and not (row.endpoint and row.bucket):
        raise Refused("A bucket needs its server's address and its name. Nothing was changed.", field="bucket")
    moved = [name for name in PLACE if before and before[name] != getattr(row, name)]
    if moved and (row.first_of.exists() or row.second_of.exists() or row.shelves.filter(next_turn__isnull=False)):
        text = "Backups lie in this store, so its place stays as it is. Make another store instead."
        raise Refused(f"{text} Nothing was changed.", field=moved[0])


def choose_stores(actor: Any, *, chosen: RegionStores) -> RegionStores:
    """Say where a region's servers are backed up to. Backups that lie elsewhere stay there until they expire.

    A store that becomes a second one is asked first whether it can be used: no form shows that its disk is missing.
    """
    refuse_pair(chosen)
    reachable.refuse(chosen)
    known = RegionStores.objects.filter(region_id=chosen.region_id).first()
    if chosen.second is not None and (known is None or known.second_id != chosen.second_id):
        found = check(actor, store=chosen.second)
        if found.fault:
            raise Refused(f"{chosen.second} can't be used: {found.fault} Nothing was changed.", field="second")
    with transaction.atomic():
        known = RegionStores.objects.select_for_update(of=("self",)).filter(region_id=chosen.region_id).first()
        before = _pair(known) if known else {}
        chosen.save()
        if known and _pair(known) != _pair(chosen):
            verbs.begin_anew(chosen)
        record(actor=actor, verb="backups.stores", object=chosen.region, before=before, after=_pair(chosen))
    return chosen


@sensitive_variables()
def refuse_unusable(chosen: RegionStores) -> None:
    """Raise `Refused` for a second store that can't be used now, before anything is written."""
    if chosen.second is None or RegionStores.objects.filter(region=chosen.region, second=chosen.second).exists():
        return
    try:
        _asked(chosen.second)
    except StoreError as error:
        raise Refused(f"{chosen.second} can't be used: {error} Nothing was changed.", field="second") from None


def refuse_pair(chosen: RegionStores) -> None:
    """Raise `Refused` for two stores that are one."""
    if chosen.second is None:
        return
    if chosen.second_id == chosen.first_id:
        text = "The second store is another one than the first: it is for the day on which that is lost."
        raise Refused(f"{text} Nothing was changed.", field="second")
    if _lies(chosen.first) == _lies(chosen.second):
        text = "Both stores lie in the same place, so they would be lost together. Choose another."
        raise Refused(f"{text} Nothing was changed.", field="second")


def together(chosen: RegionStores) -> str:
    """Return what to think of where two different stores share a machine; empty where none can be seen."""
    first, second = chosen.first, chosen.second
    if second is None or first.kind != second.kind:
        return ""
    if first.kind == Store.Kind.S3:
        if urlsplit(first.endpoint).netloc != urlsplit(second.endpoint).netloc:
            return ""
        return "Both buckets lie on the same S3 server. What takes that away takes both."
    return "Both folders lie on this machine. Give each a disk of its own at least, better another building."


def _lies(store: Store) -> tuple[str, ...]:
    return (store.kind, store.folder.rstrip("/")) if store.folder else (store.kind, store.endpoint, store.bucket)


def _pair(stores: RegionStores) -> dict[str, str]:
    return {"first": stores.first.code, "second": stores.second.code if stores.second else ""}


def _shown(row: Store) -> dict[str, str]:
    return {name: str(getattr(row, name)) for name in COLUMNS}
