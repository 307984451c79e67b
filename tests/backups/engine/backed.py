"""A real server's backups, made once: PostgreSQL, WAL, media, configuration; copies of them to damage."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backups.engine import fullread, verify
from backups.engine.catalogue import Catalogue
from backups.engine.hearth import Order
from backups.engine.objects import Vault
from backups.engine.settings import Settings
from backups.engine.stores.folder import FolderStore
from tests.backups.engine.conftest import ORGANISATION, SERVER, Bench, wait_for
from tests.backups.engine.media import NAME_KEY, Files
from tests.backups.keys import MemoryKeys

SIGNING_KEY = "ed25519 a_AbCd RG9uJ3QgdXNlIHRoaXMgaW4gYSByZWFsIHNlcnZlciEhISE\n"


class Backed:
    """A store with two restore points of one line, WAL between and behind, and media; nothing writes to it any more."""

    def __init__(self, folder: Path, keys: MemoryKeys) -> None:
        self.folder = folder
        self.keys = keys

    def copy(self, place: Path) -> Backed:
        """A copy to damage."""
        shutil.copytree(self.folder, place)
        return Backed(place, self.keys)

    @property
    def store(self) -> FolderStore:
        return FolderStore("folder", self.folder)

    @property
    def catalogue(self) -> Catalogue:
        return Catalogue.read(self.store, ORGANISATION, SERVER)

    def read(self, *only: str, expected: verify.Expected | None = None) -> verify.Report:
        """Read all of it, or some restore points."""
        vault = Vault(store=self.store, organisation=ORGANISATION, server=SERVER)
        return fullread.read(
            self.catalogue, vault, self.keys.made.__getitem__, only=only or None, name_key=NAME_KEY, expected=expected
        )

    def damage(self, name: str) -> None:
        """Flip one bit in the middle of an object."""
        path = self.folder / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


class WithMedia(Bench):
    """A server with media and a signing key."""

    def settings(self, **changes: Any) -> Settings:
        folder = self.folder
        (folder / "name.key").write_bytes(NAME_KEY)
        (folder / "signing.key").write_text(SIGNING_KEY)
        more = {
            "media": str(folder / "media"),
            "name_key_file": str(folder / "name.key"),
            "signing_key_id": "ed25519:a_AbCd",
            "configuration": {"signing.key": str(folder / "signing.key")},
        }
        return super().settings(**(more | changes))


def _fill(bench: Bench) -> None:
    files = Files(bench.folder / "media")
    for size in (100, 5000, 70_000, 9 << 20):
        files.add(os.urandom(size), thumbnails=2)
    bench.cluster.value("CREATE TABLE message (id int PRIMARY KEY, body text)")
    engine = bench.start()
    bench.point()
    for number in range(3):
        bench.cluster.value("INSERT INTO message VALUES (%s, 'hello')", number)
        files.add(os.urandom(1000))
        bench.covered()
        bench.cluster.value("SELECT pg_switch_wal()")
    engine.order(Order(id=uuid.uuid4(), kind="backup", reason="manual"))
    bench.point(1)
    bench.cluster.value("INSERT INTO message VALUES (100, 'last')")
    files.add(os.urandom(2000))
    bench.covered()
    wait_for(lambda: len(bench.events("media")) >= 3)
    bench.stop()


@contextlib.contextmanager
def backed_up() -> Iterator[Backed]:
    """Give a server's backups; nothing writes to them any more."""
    folder = Path(tempfile.mkdtemp(prefix="hb-", dir="/tmp"))
    folder.chmod(0o755)
    bench = WithMedia(folder)
    try:
        bench.cluster.make()
        _fill(bench)
        yield Backed(folder / "store", bench.keys)
    finally:
        bench.stop()
        bench.cluster.stop()
        shutil.rmtree(folder)
