"""The chain of moments: what can be restored, told every few minutes while something changes. Imports no Django.

A moment at T says: all commits up to T are before `lsn`, all WAL before `lsn` is stored, and so are the media that
there were at T. The media are looked at after T, because Synapse stores a file before its row. The marker comes last:
behind each moment there is a commit, at which a recovery to T or to any second before it ends.
"""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from datetime import datetime

from backups.engine import manifest, names
from backups.engine.database import lsn
from backups.engine.database.postgres import Now
from backups.engine.database.stream import Stream
from backups.engine.database.wal import PURPOSE
from backups.engine.manifest import Moment, Ref
from backups.engine.state import Line
from backups.engine.stores.base import NoSuchObject, StoreError
from backups.engine.work import Work

WAL_SECONDS = 120.0
MOST_REFS = 256
"""WAL objects in one moment; more make the next one due at once."""
READ_AT_MOST = 16 * 2**20
_NO_KEY = uuid.UUID(int=0)
"""Replaced by `manifest.seal`."""


class Moments:
    """Looks at the media and writes moments. `turn` belongs to one thread."""

    def __init__(self, work: Work, stream: Stream) -> None:
        self._work = work
        self._stream = stream
        self._line = ""
        self._transactions = -1
        self._media: Ref | None = None
        self._told_media: Ref | None = None
        self._media_at = 0.0
        self._moment_at = 0.0
        self.soon = threading.Event()
        """Set by whoever wants media and a moment at the next turn, whatever the time; cleared when that is done."""

    def turn(self) -> float:
        """Run over the media when it is time, then write a moment when something changed. Returns seconds to wait."""
        work, line = self._work, self._work.memory.state.line
        shipper = self._stream.shipper
        if line is None or shipper is None or shipper.line is not line or work.memory.state.resting:
            return 1.0
        if line.id != self._line:
            self._resume(line)
        now = self.soon.is_set()
        with work.postgres.session() as session:
            found = session.now()
        self._run_media(found.at, now=now)
        if self._due(line, found, now=now):
            self._write(line, found)
        if now:
            self.soon.clear()
        return min(work.policy.media_every, work.policy.moment_every, 5.0)

    def _due(self, line: Line, found: Now, *, now: bool) -> bool:
        policy, since = self._work.policy, time.monotonic() - self._moment_at
        changed = found.transactions != self._transactions or self._media != self._told_media
        full = len(line.fresh) >= MOST_REFS
        return now or full or since >= policy.moment_at_rest or (changed and since >= policy.moment_every)

    def _run_media(self, at: datetime, *, now: bool) -> None:
        if not now and time.monotonic() - self._media_at < self._work.policy.media_every:
            return
        result = self._work.run_media(at, full=False)
        self._media_at = time.monotonic()
        if result is not None:
            self._media = result.ref
            with self._work.memory.changing() as state:
                state.media_until, state.stored_bytes = at, state.stored_bytes + result.new_bytes

    def _write(self, line: Line, found: Now) -> None:
        with self._work.postgres.session() as session:
            place = session.mark()
        if not self._stream.reach(place, WAL_SECONDS):
            raise StoreError(
                f"The WAL before {lsn.text(place)} is not in the store after {WAL_SECONDS:.0f} seconds. What is stored "
                "is safe; the next moment is told when it has come.",
                code="Behind",
            )
        media = self._media
        moment = Moment(
            organisation=self._work.settings.organisation,
            server=self._work.settings.server,
            id=names.new_id(found.at),
            at=found.at,
            key=_NO_KEY,
            line=line.id,
            number=line.number,
            previous=line.previous,
            timeline=line.timeline,
            lsn=lsn.text(place),
            media=media,
        )
        self._store(line, moment)
        # Ours is one of the transactions; anybody else's in between counts as a change.
        self._transactions, self._told_media = found.transactions + 1, media
        self._moment_at = time.monotonic()

    def _store(self, line: Line, moment: Moment) -> None:
        work, name = self._work, names.moment(line.id, moment.id)
        key = work.keys.stretch(PURPOSE, f"{names.LINES}{line.id}")
        with work.memory.changing():
            line.pending = moment.id
            moment.wal = tuple(line.fresh)
        data = manifest.seal(moment, key, name)
        work.vault.store.put(name, [data])
        self._told(line, moment, data)
        work.progress.say("moment", line=line.id, moment=moment.id, moment_at=moment.at, lsn=moment.lsn)

    def _told(self, line: Line, moment: Moment, data: bytes) -> None:
        """Remember that this moment is stored."""
        named = {ref.name for ref in moment.wal}
        with self._work.memory.changing() as state:
            line.fresh = [ref for ref in line.fresh if ref.name not in named]
            line.previous, line.number, line.pending = hashlib.sha256(data).hexdigest(), moment.number + 1, ""
            line.moment_at = moment.at
            state.stored_bytes += len(data)

    def _resume(self, line: Line) -> None:
        """Find out whether the moment that a crash interrupted is stored: two must not have one place in the chain."""
        if line.pending:
            name = names.moment(line.id, line.pending)
            try:
                if self._work.vault.store.head(name).size > READ_AT_MOST:
                    raise manifest.ManifestError(f"The moment {name} is larger than one can be.")
                data = b"".join(self._work.vault.store.get(name))
                self._told(line, manifest.read(data, Moment, name), data)
            except NoSuchObject:
                with self._work.memory.changing():
                    line.pending = ""
        self._line, self._transactions, self._moment_at = line.id, -1, 0.0
        self._told_media = None
