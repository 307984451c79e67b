"""What tests of copies make and do again and again."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from django.db.models import F
from django.utils import timezone

from audit.services import SYSTEM
from backups import places
from backups.copying import leases, schedule, turns
from backups.models import Copy, RegionStores, RestorePoint, ServerBackups, Store
from tenants.models import Server
from tests.backups.control.looks import Kept

MINUTE = timedelta(minutes=1)


def kept(server: Server, root: Path) -> Kept:
    made = Kept(server, root, 3)
    RestorePoint.objects.update(copied=None)
    ServerBackups.objects.update(media_until=F("until"), line=made.history.line, stored_bytes=1)
    return made


def second(root: Path) -> Store:
    root.mkdir()
    made = Store.objects.create(code="far", name="Far away", kind=Store.Kind.FOLDER, folder=str(root))
    stores = RegionStores.objects.get()
    stores.second = made
    places.choose_stores(SYSTEM, chosen=stores)
    return Store.objects.get(pk=made.pk)


def names_in(store: Store, server: Server) -> set[str]:
    with places.opened(store, server.pk) as opened:
        return {each.name for each in opened.listing()}


def turn(**columns: Any) -> Copy:
    """Let the copy's turn come, in which both stores are compared, and return how it is then."""
    schedule.make_missing()
    Copy.objects.update(next_turn=timezone.now() - MINUTE, **{"turned": F("turned") - 2 * leases.LOOK, **columns})
    lease = leases.claim()
    assert lease is not None
    turns.run(lease)
    return Copy.objects.get(pk=lease.copy.pk)


def row() -> ServerBackups:
    return ServerBackups.objects.get()
