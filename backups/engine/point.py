"""A restore point: base backup, WAL, configuration, media index, and last the manifest that says all of it is there."""

from __future__ import annotations

import time
import uuid
from datetime import datetime

from backups.engine import configuration, manifest, memory, names
from backups.engine.database import lsn
from backups.engine.database.base import Base, BaseError, Taker
from backups.engine.database.stream import Stream
from backups.engine.hearth import PointReport
from backups.engine.manifest import Point, Ref
from backups.engine.objects import FILES
from backups.engine.state import Line
from backups.engine.stores.base import NoSuchObject
from backups.engine.work import Work
from security.streams import DataKey

BASE, CONFIGURATION = "backup.base", "backup.configuration"
WAL_SECONDS = 6 * 3600.0
"""A store that is away holds a base backup up, but does not make it worthless."""
UNTOLD_KEPT = 50


class Points:
    """Takes restore points, one at a time."""

    def __init__(self, work: Work, stream: Stream) -> None:
        self._work = work
        self._stream = stream
        self.taker = Taker(work.postgres, work.settings.tools, work.vault)

    def take(self, kind: str) -> Point:
        """Store a restore point and return its manifest. Raises `BaseError` and what the parts raise."""
        if (pending := self._work.memory.state.pending) is not None:
            self.resume(pending)
        work, line, began = self._work, self._line(), time.monotonic()
        identity = names.new_id()
        work.progress.say("point-begins", point=identity, kind=kind, line=line.id)
        base = self.taker.take(identity, work.keys.once(BASE, names.base(identity)), work.policy)
        if base.begin < line.began:
            raise BaseError("The base backup begins before its line does, so WAL would be missing. It is taken anew.")
        key = work.keys.once(CONFIGURATION, names.configuration(identity))
        name = names.configuration(identity)
        files = configuration.collect(work.settings.configuration)
        kept = work.vault.put(name, files, key, FILES, identity)
        at = self._await_wal(base)
        point = self._point(identity, kind=kind, line=line, base=base, kept=kept, at=at)
        self._store(point, line, key, time.monotonic() - began)
        memory.give_back()
        return point

    def _line(self) -> Line:
        line, shipper = self._work.memory.state.line, self._stream.shipper
        if line is None or shipper is None or shipper.line is not line:
            raise BaseError("The stream of WAL has not begun yet; the base backup waits for it.")
        return line

    def _await_wal(self, base: Base) -> datetime:
        """Return the database's time after the base backup, once all WAL is stored that it needs."""
        with self._work.postgres.session() as session:
            at = session.now().at
            session.switch()
        end = time.monotonic() + WAL_SECONDS
        while not self._stream.reach(base.end, 5.0):
            if self._work.stop.is_set() or time.monotonic() > end or self._stream.shipper is None:
                raise BaseError(
                    f"The WAL up to {lsn.text(base.end)}, without which the base backup is of no use, is not stored. "
                    "It is taken anew."
                )
        return at

    def _point(self, identity: str, *, kind: str, line: Line, base: Base, kept: Ref, at: datetime) -> Point:
        settings, media = self._work.settings, self._work.run_media(at, full=True)
        with self._work.postgres.session() as session:
            facts = session.facts()
        return Point(
            organisation=settings.organisation,
            server=settings.server,
            id=identity,
            at=at,
            key=_NO_KEY,
            kind=kind,
            server_name=settings.server_name,
            synapse_version=settings.synapse_version,
            signing_key_id=settings.signing_key_id,
            postgres_version=facts.version,
            system=facts.system,
            line=line.id,
            timeline=base.timeline,
            begin=lsn.text(base.begin),
            end=lsn.text(base.end),
            base=base.ref,
            configuration=kept,
            media=media.ref if media else None,
            media_bytes=media.bytes if media else 0,
            media_files=media.files if media else 0,
            database_bytes=base.bytes,
        )

    def _store(self, point: Point, line: Line, key: DataKey, seconds: float) -> None:
        """Write the manifest: from here on the point exists."""
        name = names.point(point.id)
        data = manifest.seal(point, key, name)
        if self._work.memory.state.line is not line or point.system != line.system:
            raise BaseError("The line of WAL ended while its base backup was taken. A new one is taken.")
        stored = point.base.size + point.configuration.size + len(data)
        report = PointReport(manifest=point, seconds=seconds, stored_bytes=stored)
        with self._work.memory.changing() as state:
            state.pending = report
        self._work.vault.store.put(name, [data])
        self._stored(report)

    def resume(self, report: PointReport) -> None:
        """Find out whether the point whose manifest a crash interrupted is stored."""
        try:
            self._work.vault.store.head(names.point(report.manifest.id))
        except NoSuchObject:
            with self._work.memory.changing() as state:
                state.pending = None
        else:
            self._stored(report)

    def _stored(self, report: PointReport) -> None:
        """Remember a point that exists."""
        point = report.manifest
        with self._work.memory.changing() as state:
            state.pending, state.point, state.point_at = None, point.id, point.at
            state.point_kind, state.point_line = point.kind, point.line
            state.untold = [*state.untold, report][-UNTOLD_KEPT:]
            state.stored_bytes += report.stored_bytes
            if state.line is not None and state.line.id == point.line:
                state.line.begun = state.line.begun or point.at
        self._work.progress.say(
            "point-stored",
            point=point.id,
            kind=point.kind,
            line=point.line,
            point_at=point.at,
            bytes=point.database_bytes,
            stored_bytes=report.stored_bytes,
            seconds=round(report.seconds, 3),
        )


_NO_KEY = uuid.UUID(int=0)
"""Replaced by `manifest.seal`."""
