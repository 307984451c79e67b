"""Which stores a server's region has: the first, where its engine writes, and the second, which is filled by copies."""

from __future__ import annotations

from django.db.models import QuerySet

from backups.models import RegionStores, RestorePoint, Store
from tenants.models import Server


def stores_of(server: Server) -> RegionStores | None:
    """Return the stores of a server's region; None where it has none, so that nothing there is backed up."""
    return _of(server).select_related("first", "second").first()


def is_first(server: Server, store: Store) -> bool:
    """Return whether this is where the server's engine writes, whose marks the manifests have."""
    return _of(server).filter(first=store).exists()


def is_second(server: Server, store: Store) -> bool:
    """Return whether it is filled by copies from the first."""
    return _of(server).filter(second=store).exists()


def whole_in(server: Server, store: Store) -> QuerySet[RestorePoint]:
    """Return the restore points that must lie whole in a store: of another than the first, those that were copied."""
    rows = RestorePoint.objects.filter(server=server, state=RestorePoint.State.WHOLE)
    return rows if is_first(server, store) else rows.filter(copied__isnull=False)


def _of(server: Server) -> QuerySet[RegionStores]:
    return RegionStores.objects.filter(region__code=server.region)
