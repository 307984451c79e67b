"""Weeks of a server's backups in a folder, made in seconds: real manifests, and objects whose contents don't matter."""

from __future__ import annotations

import hashlib
import os
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from backups.engine import manifest, names
from backups.engine.catalogue import Catalogue
from backups.engine.database import lsn
from backups.engine.manifest import MediaRun, Moment, Packed, Packs, Point, Ref, Sealed
from backups.engine.stores.folder import FolderStore
from security.streams import DataKey

ORGANISATION, SERVER = "alice-and-friends", "home"
KEY = DataKey.fresh()
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
HALF = names.SEGMENT_SIZE // 2


class History:
    """An engine without a database: its clock is `now`, and each object is as old as it says."""

    def __init__(self, store: FolderStore) -> None:
        self.store = store
        self.now = BEGIN
        self.place = names.SEGMENT_SIZE
        self.line = ""
        self.points: list[Point] = []
        self._fresh: list[Ref] = []
        self._number, self._previous = 0, ""
        self._runs: list[MediaRun] = []
        self._media: Ref | None = None
        store.put("made", [b""])
        self.begin_line()

    @property
    def catalogue(self) -> Catalogue:
        return Catalogue.read(self.store, ORGANISATION, SERVER)

    def pass_(self, **time: float) -> None:
        """Let time go by."""
        self.now += timedelta(**time)

    def begin_line(self) -> None:
        """The slot was lost: a new line."""
        self.line, self._number, self._previous, self._fresh = names.new_id(self.now), 0, "", []

    def wal(self, segments: int = 1) -> None:
        """Write WAL: of each segment a piece first, then all of it."""
        for _ in range(segments):
            segment = lsn.name(1, self.place)
            self._fresh.append(self._put(names.wal(self.line, segment, 0, HALF), self.line))
            self._fresh.append(self._put(names.wal(self.line, segment), self.line))
            self.place += names.SEGMENT_SIZE

    def moment(self) -> Moment:
        """Write a moment."""
        found = Moment(
            **self._sealed(),
            line=self.line,
            number=self._number,
            previous=self._previous,
            timeline=1,
            lsn=lsn.text(self.place),
            wal=tuple(self._fresh),
            media=self._media,
        )
        ref = self._manifest(found, names.moment(self.line, found.id))
        self._number, self._previous, self._fresh = self._number + 1, ref.sha256, []
        return found

    def media(self, *, full: bool = False, keep: int = 3) -> None:
        """Write a run: one new object; a full one lists the last `keep`."""
        last = self._runs[-1] if self._runs else None
        full = full or last is None
        sealed = self._sealed()
        run = str(sealed["id"])
        ref = self._put(names.media(run, 1), run)
        packs = [Packs(run=run, key=KEY.id, objects=(Packed(1, ref.size, ref.sha256, "", 1),))]
        if full:
            packs += [each for before in self._runs[-keep:] for each in before.packs[:1]]
        found = MediaRun(
            **sealed,
            whole=True,
            chain=0 if full or last is None else last.chain + 1,
            previous=self._media,
            index=self._put(names.media_index(run), run),
            known=self._put(names.media_known(run), run) if full else None,
            packs=tuple(packs),
            files=1,
            bytes=1,
        )
        self._media = self._manifest(found, names.media_run(run))
        self._runs.append(found)

    def point(self, kind: str = "daily") -> Point:
        """Write a restore point."""
        sealed = self._sealed()
        identity, begin = str(sealed["id"]), self.place
        parts = self._put(names.base(identity), identity), self._put(names.configuration(identity), identity)
        self.wal()
        self.media(full=True)
        found = Point(
            **sealed,
            kind=kind,
            server_name="alice.hearth.localhost",
            synapse_version="1",
            signing_key_id="ed25519:a",
            postgres_version=180004,
            system="7",
            line=self.line,
            timeline=1,
            begin=lsn.text(begin + 40),
            end=lsn.text(begin + 400),
            base=parts[0],
            configuration=parts[1],
            media=self._media,
        )
        self._manifest(found, names.point(identity))
        self.points.append(found)
        return found

    def day(self) -> None:
        """A day as most are: a restore point, then WAL, media and moments."""
        self.point()
        for _ in range(3):
            self.pass_(hours=8)
            self.wal()
            self.media()
            self.moment()

    def _sealed(self) -> dict[str, Any]:
        self.pass_(seconds=1)
        identity = names.new_id(self.now)
        return {"organisation": ORGANISATION, "server": SERVER, "id": identity, "at": self.now, "key": uuid.UUID(int=0)}

    def _put(self, name: str, part_of: str, data: bytes = b"") -> Ref:
        data = data or os.urandom(16)
        path = self.store._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:  # as the store would, but for syncing thousands of files
            file.write(data)
        os.utime(path, (self.now.timestamp(), self.now.timestamp()))
        return Ref(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest(), key=KEY.id, part_of=part_of)

    def _manifest(self, found: Sealed, name: str) -> Ref:
        data = manifest.seal(found, KEY, name)
        return self._put(name, found.id, data)
