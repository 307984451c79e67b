"""A server of Hearth whose store holds weeks of backups, made in seconds."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from django.utils import timezone

from backups import seeds
from backups.engine.stores.folder import FolderStore
from backups.models import RegionStores, RestorePoint, ServerBackups, Shelf, Store
from provisioning import fleet
from tenants.models import Server
from tests.backups.engine.history import History


class Kept:
    """Backups of a server in a folder store, its rows as `sync` would have written them."""

    def __init__(self, server: Server, root: Path, days: int) -> None:
        self.server = server
        region = fleet.seed_region()
        self.store = Store.objects.create(code="disk", name="Disk", kind=Store.Kind.FOLDER, folder=str(root))
        RegionStores.objects.create(region=region, first=self.store)
        seeds.seed_backups()
        self.folder = root / str(server.pk)
        self.history = OfServer(FolderStore("disk", self.folder, make=True), server, days)
        for _ in range(days):
            self.history.day()
        now = timezone.now()
        ServerBackups.objects.create(server=server, reported=now, until=now, begun=now - timedelta(days=days))
        for point in self.history.points:
            RestorePoint.objects.create(
                server=server, identity=point.id, at=point.at, kind="daily", line=point.line, copied=point.at,
                keep_until=point.at + timedelta(days=30),
            )  # fmt: skip
        self.shelf = Shelf.objects.create(server=server, store=self.store, next_turn=now)

    def names(self) -> set[str]:
        return {each.name for each in self.history.store.listing()}

    def states(self) -> dict[str, str]:
        return dict(RestorePoint.objects.filter(server=self.server).values_list("identity", "state"))


class OfServer(History):
    """A history that ends now and is that server's."""

    def __init__(self, store: FolderStore, server: Server, days: int) -> None:
        self.whose = {"organisation": str(server.organisation_id), "server": str(server.pk)}
        super().__init__(store)
        self.now = timezone.now() - timedelta(days=days, minutes=5)
        self.begin_line()

    def _sealed(self) -> dict[str, object]:
        return super()._sealed() | self.whose
