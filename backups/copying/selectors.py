"""What lies in a second store, for pages and for whoever restores from it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.db.models import QuerySet

from backups.copying.models import Copy
from backups.models import RestorePoint, ServerBackups, Store
from backups.regions import is_first, stores_of
from tenants.models import Server


@dataclass(frozen=True)
class Second:
    """How the copy of a server's backups in its second store is."""

    store: Store
    until: datetime | None
    """It has everything up to here."""
    lag_bytes: int
    fault: str
    points: int


def second_of(server: Server) -> Second | None:
    """Return it; None where the region has no second store."""
    stores = stores_of(server)
    if stores is None or stores.second is None:
        return None
    copy = Copy.objects.filter(server=server, source=stores.first_id, target=stores.second_id).first()
    row = ServerBackups.objects.filter(server=server).first()
    return Second(
        store=stores.second,
        until=row.copied_until if row else None,
        lag_bytes=row.copy_lag_bytes if row else 0,
        fault=copy.fault if copy else "",
        points=points_in(server, stores.second).count(),
    )


def points_in(server: Server, store: Store) -> QuerySet[RestorePoint]:
    """Return the restore points that can be brought back from a store, newest first.

    One that is damaged in the first store may be whole in the second: it was compared byte by byte on its way there.
    """
    rows = RestorePoint.objects.filter(server=server).exclude(state=RestorePoint.State.GONE)
    if is_first(server, store):
        return rows.filter(state=RestorePoint.State.WHOLE)
    return rows.filter(copied__isnull=False)
