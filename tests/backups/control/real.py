"""Real backups of a real database and media, made once in a run, whose keys Hearth's own keyring then holds.

The server has ids of its own, so that the rows of each test fit to what lies in the store.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.utils import timezone

from accounts.models import User
from backups import seeds
from backups.engine.hearth import Order
from backups.engine.manifest import Point
from backups.engine.settings import Settings
from backups.models import Line, RegionStores, RestorePoint, ServerBackups, Store
from provisioning import fleet
from security.keyring import deks, keks
from security.models import DataKey
from security.secret import Key
from tenants.models import Membership, Organisation, Plan, Server, Subscription
from tests.backups.engine.backed import WithMedia
from tests.backups.engine.conftest import wait_for
from tests.backups.engine.media import NAME_KEY, Files
from tests.backups.keys import MemoryKeys
from tests.backups.recovery import Restorer

ORGANISATION, SERVER = uuid.UUID(int=0xA11CE), uuid.UUID(int=0x5E84)


class Backups:
    """Two restore points of one line with moments behind; nothing writes to them any more."""

    def __init__(self, folder: Path, keys: MemoryKeys, points: list[Point], moments: int) -> None:
        self.folder = folder
        self.keys = keys
        self.points = points
        self.moments = moments

    def copy(self, root: Path) -> Path:
        """A copy to damage, where a store whose folder is `root` expects it."""
        return Path(shutil.copytree(self.folder, root / str(SERVER)))


class OfServer(WithMedia):
    """A database with its engine, that is the server of those ids."""

    def settings(self, **changes: Any) -> Settings:
        return super().settings(organisation=str(ORGANISATION), server=str(SERVER), **changes)

    @property
    def restorer(self) -> Restorer:
        return Restorer(self.store, str(ORGANISATION), str(SERVER), self.keys.open)


@contextlib.contextmanager
def made() -> Iterator[Backups]:
    """Make them."""
    folder = Path(tempfile.mkdtemp(prefix="hb-", dir="/tmp"))
    folder.chmod(0o755)
    bench = OfServer(folder)
    try:
        bench.cluster.make()
        files = Files(folder / "media")
        for size in (100, 70_000):
            files.add(os.urandom(size), thumbnails=1)
        bench.cluster.value("CREATE TABLE message (id int PRIMARY KEY, body text)")
        engine = bench.start()
        bench.point()
        engine.order(Order(id=uuid.uuid4(), kind="backup", reason="manual"))
        bench.point(1)
        bench.cluster.value("INSERT INTO message VALUES (1, 'hello')")
        bench.covered()
        wait_for(lambda: bench.events("media"))
        bench.stop()
        points = bench.restorer.points()
        yield Backups(folder / "store", bench.keys, points, len(bench.restorer.moments(points[0].line)))
    finally:
        bench.stop()
        bench.cluster.stop()
        shutil.rmtree(folder)


def server_of(owner: User) -> Server:
    """Make the server that these backups are of."""
    plan = Plan.objects.create(
        code="t", name="Test", servers=9, users=900, vcpu=99, memory_mb=99000, disk_gb=999, object_gb=9999
    )
    organisation = Organisation.objects.create(pk=ORGANISATION, name="Alice & Co", slug="alice-co")
    Subscription.objects.create(organisation=organisation, plan=plan)
    Membership.objects.create(organisation=organisation, user=owner, role="owner")
    return Server.objects.create(
        pk=SERVER, organisation=organisation, name="chat", server_name="alice.hearth.localhost", region="local",
        version="1.149.1", users=100,
    )  # fmt: skip


def told(backups: Backups, server: Server, root: Path) -> Path:
    """Have the server's rows and keys as if Hearth had heard of these backups; return the folder that holds them."""
    region = fleet.seed_region()
    store = Store.objects.create(code="disk", name="Disk", kind=Store.Kind.FOLDER, folder=str(root))
    RegionStores.objects.create(region=region, first=store)
    seeds.seed_backups()
    now = timezone.now()
    line = Line.objects.create(
        server=server, identity=backups.points[0].line, begun=backups.points[0].at, until=now, moments=backups.moments
    )
    row = ServerBackups(server=server, line=line.identity, begun=line.begun, until=now, reported=now)
    row.name_key = base64.b64encode(NAME_KEY).decode()
    row.save()
    for each in backups.points:
        RestorePoint.objects.create(
            server=server, identity=each.id, at=each.at, kind="daily", line=each.line, synapse_version="1.149.1"
        )
    keep_keys(backups.keys, server)
    return backups.copy(root)


def keep_keys(keys: MemoryKeys, server: Server) -> None:
    """Put the data keys into the keyring, as if it had made them for this server's engine."""
    kek = keks.ensure_kek(server.organisation_id)
    for number, (identity, key) in enumerate(keys.made.items()):
        row = DataKey(
            pk=identity, kek=kek, owner=server.organisation_id, purpose="backup.test", server=server.pk,
            object=f"test/{number}", shared=False,
        )  # fmt: skip
        with keks.open_kek(kek) as wrapping:
            row.wrapped = deks.wrap_with(wrapping, kek.pk, row, Key(key.reveal()))
        row.save(force_insert=True)
