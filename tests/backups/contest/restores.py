"""Restores from backups that somebody damages meanwhile: refused, right, or wrong."""

from __future__ import annotations

import hashlib
import io
import shutil
import threading
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from backups.engine import verify
from backups.engine.progress import Progress
from backups.engine.restore.command import Restore
from backups.engine.restore.errors import RestoreError
from backups.engine.restore.keys import OpenKeys
from backups.engine.restore.request import Request
from backups.engine.settings import FolderStoreAt
from security.streams import DataKey
from security.transport.errors import CallRefused
from tests.backups.clusters import Cluster
from tests.backups.engine.backed import Backed
from tests.backups.engine.conftest import ORGANISATION, SERVER
from tests.backups.engine.media import NAME_KEY
from tests.backups.restore.conftest import TOOLS

Outcome = Literal["refused", "right", "wrong"]
Content = tuple[list[tuple[Any, ...]], dict[str, str]]


class Restores:
    """Tries restores of whole backups, and knows from a first try of each what comes back when nothing is damaged."""

    def __init__(self, backed: Backed, folder: Path) -> None:
        self._backed, self._folder = backed, folder
        self._name_key = folder / "name.key"
        self._name_key.write_bytes(NAME_KEY)
        catalogue = backed.catalogue
        first = min(catalogue.points.values(), key=lambda point: point.at)
        self._first_needs = verify.needed(catalogue, first)
        self._first: dict[str, Any] = {"point": first.id}
        self._latest: dict[str, Any] = {"to": max(each.at for some in catalogue.moments.values() for each in some)}
        self._right = {repr(aim): self._restored(aim) for aim in (self._first, self._latest)}

    def tried(self, names: Iterable[str]) -> Outcome:
        """Restore what needs these objects: the first point if it is theirs, else the latest moment."""
        aim = self._first if self._first_needs & set(names) else self._latest
        try:
            found = self._restored(aim)
        except RestoreError:
            return "refused"
        return "right" if found == self._right[repr(aim)] else "wrong"

    def _restored(self, aim: dict[str, Any]) -> Content:
        """Bring it back and read all of it. Raises `RestoreError`."""
        place = self._folder / "r"
        place.mkdir(mode=0o755)
        place.chmod(0o755)
        request = Request(
            organisation=ORGANISATION,
            server=SERVER,
            store=FolderStoreAt(path=str(self._backed.folder)),
            data=str(place / "data"),
            media=str(place / "media"),
            work=str(place / "work"),
            name_key_file=str(self._name_key),
            tools=TOOLS,
            settle=None,
            **aim,
        )
        stop = threading.Event()
        try:
            Restore(request, self._backed.store, OpenKeys(self._ask, stop), Progress(io.StringIO()), stop).run()
            return self._content(place)
        finally:
            shutil.rmtree(place)

    def _content(self, place: Path) -> Content:
        cluster = Cluster(place / "s")
        cluster.data = place / "data"
        try:
            cluster.start()
            with cluster.connect() as connection:
                rows = connection.execute("SELECT * FROM message ORDER BY id").fetchall()
        finally:
            cluster.stop()
        files = (path for path in (place / "media").rglob("*") if path.is_file())
        return rows, {
            str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)
        }

    def _ask(self, identity: uuid.UUID) -> DataKey:
        found = self._backed.keys.made.get(identity)
        if found is None:
            raise CallRefused(404, "not-found", "There is no such data key.", "")
        return found
