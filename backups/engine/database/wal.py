"""From the spool to the store: finished segments at once, the tail of the one that is being written every 30 s.

What is stored is written down (`Memory.save`) before it leaves the spool. A crash in between finds the object there
already: names tell exactly which bytes of WAL an object has, and those are the same for ever, so it is taken as it is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from backups.engine import names
from backups.engine.database import lsn
from backups.engine.database.postgres import Session
from backups.engine.database.spool import File, Spool, opened, packed
from backups.engine.keys import Keys
from backups.engine.manifest import Ref
from backups.engine.names import SEGMENT_SIZE
from backups.engine.objects import DATABASE, Vault
from backups.engine.state import Line, Memory
from backups.engine.stores.base import ObjectExists

PURPOSE = "backup.wal"
GAP_SECONDS = 3.0
"""So long a segment must be missing: a look at a folder may miss a file that is being renamed."""


class LineLostError(Exception):
    """The line can't go on. `reason` is one word for a machine, the text is for a person."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Shipper:
    """Stores the WAL of one line. Its methods are called by one thread, `reach` by any."""

    def __init__(
        self, vault: Vault, keys: Keys, memory: Memory, line: Line, folder: Path, *, wake: Callable[[], None]
    ) -> None:
        self.line = line
        self.folder = folder
        self.waiting_bytes = 0
        self._vault = vault
        self._keys = keys
        self._memory = memory
        self._wake = wake
        self._moved = threading.Condition()
        self._wanted: list[int] = []
        self._gap_since = 0.0
        self._ended = False

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for more than is stored."""
        return any(place > self.line.stored for place in list(self._wanted))

    def reach(self, place: int, seconds: float) -> bool:
        """Wait until all WAL before `place` is stored; False when it is not after `seconds`, or the line ended."""
        with self._moved:
            self._wanted.append(place)
            self._wake()
            try:
                self._moved.wait_for(lambda: self._ended or self.line.stored >= place, seconds)
            finally:
                self._wanted.remove(place)
            return self.line.stored >= place and not self._ended

    def end(self) -> None:
        """Let nobody wait any more."""
        with self._moved:
            self._ended = True
            self._moved.notify_all()

    def resume(self) -> None:
        """Take in pieces that were stored just before a crash."""
        place = lsn.begin_of(self.line.stored)
        prefix = names.wal(self.line.id, lsn.name(self.line.timeline, place))
        found = [names.piece_of(each.name) for each in self._vault.store.listing(prefix)]
        pieces = {each[1]: each for each in found if each is not None and each[2] - each[1] < SEGMENT_SIZE}
        while (piece := pieces.get(self.line.stored - place)) is not None:
            name = names.wal(self.line.id, *piece)
            self._record([self._vault.adopt(name, self.line.id)], place + piece[2])

    def ship(self, *, uploads: int, level: int) -> int:
        """Store finished segments, a few at once, in order. Return how many."""
        spool = self._received()
        self.waiting_bytes = spool.bytes
        self._check_gap(spool)
        waiting = list(self._next(spool))
        if waiting:
            with ThreadPoolExecutor(uploads, "wal") as pool:
                for begin in range(0, len(waiting), uploads):
                    self._ship_some(pool, waiting[begin : begin + uploads], level)
                    spool.remove_below(self.line.stored)
        spool.remove_below(lsn.begin_of(self.line.stored))
        return len(waiting)

    def tail(self, session: Session, level: int) -> bool:
        """Store what is new in the segment that is being written. True if that was something."""
        place = lsn.begin_of(self.line.stored)
        partial = Spool.look(self.folder).partial
        if partial is None or partial.place != place:
            return False
        self._check_timeline(partial)
        with opened(self.folder / partial.name) as handle:
            # Asked after it was opened: what the server knows to be written is written to this file.
            begin, end = self.line.stored - place, session.written() - place
            if not begin < end < SEGMENT_SIZE:  # a whole one is about to get its name
                return False
            name = names.wal(self.line.id, partial.segment, begin, end)
            ref = self._put(name, handle, begin, end, level)
        self._record([ref], place + end)
        return True

    def _next(self, spool: Spool) -> Iterator[File]:
        place = lsn.begin_of(self.line.stored)
        while (file := spool.finished.get(place)) is not None:
            self._check_timeline(file)
            yield file
            place += SEGMENT_SIZE

    def _ship_some(self, pool: ThreadPoolExecutor, files: list[File], level: int) -> None:
        """Store them at once; those before the first that failed count."""
        futures: list[Future[Ref]] = [pool.submit(self._whole, file, level) for file in files]
        for file, future in zip(files, futures, strict=True):
            self._record([future.result()], file.place + SEGMENT_SIZE)

    def _whole(self, file: File, level: int) -> Ref:
        with opened(self.folder / file.name) as handle:
            return self._put(names.wal(self.line.id, file.segment), handle, 0, SEGMENT_SIZE, level)

    def _put(self, name: str, handle: int, begin: int, end: int, level: int) -> Ref:
        key = self._keys.stretch(PURPOSE, f"{names.LINES}{self.line.id}")
        try:
            return self._vault.put(name, packed(handle, begin, end, level), key, DATABASE, self.line.id)
        except ObjectExists:
            found = self._vault.adopt(name, self.line.id)
        # The same bytes give the same frame; and nothing else may ever be meant by this name.
        if found.plain != sum(map(len, packed(handle, begin, end, level))):
            raise LineLostError(
                "StoreDamaged",
                f"Under the name {name} lies something else than this WAL. What is stored stays; a new line begins.",
            )
        return found

    def _record(self, refs: list[Ref], stored: int) -> None:
        with self._memory.changing() as state:
            if state.line is not self.line:
                raise LineLostError("Ended", "This line has ended.")
            for ref in refs:
                found = names.piece_of(ref.name)
                if found is not None and (found[1], found[2]) == (0, SEGMENT_SIZE):
                    self.line.fresh = [each for each in self.line.fresh if not _is_piece(each.name, found[0])]
                self.line.fresh.append(ref)
            self.line.stored = max(stored, self.line.stored)
            # With what is stored, in one write: whoever copies it further sees by this number alone whether to look.
            state.stored_bytes += sum(ref.size for ref in refs)
        with self._moved:
            self._moved.notify_all()

    def _check_gap(self, spool: Spool) -> None:
        oldest = spool.oldest
        if oldest is None or oldest <= lsn.begin_of(self.line.stored):
            self._gap_since = 0.0
            return
        self._gap_since = self._gap_since or time.monotonic()
        if time.monotonic() - self._gap_since >= GAP_SECONDS:
            raise LineLostError(
                "Gap",
                f"WAL from {lsn.text(self.line.stored)} to {lsn.text(oldest)} is missing: the server gave it to nobody "
                "or the spool was lost. A new line begins with a base backup of its own.",
            )

    def _received(self) -> Spool:
        """Look at what was received, and keep the histories of timelines that are new."""
        spool = Spool.look(self.folder)
        for timeline in sorted(spool.histories):
            self._follow(spool, timeline)
        return spool

    def _follow(self, spool: Spool, timeline: int) -> None:
        """Keep a timeline's history file; it says where the timelines before it were left."""
        if timeline in self.line.histories:
            return
        name = names.history(self.line.id, timeline)
        text = spool.history(timeline)
        key = self._keys.stretch(PURPOSE, f"{names.LINES}{self.line.id}")
        try:
            ref = self._vault.put(name, [text.encode()], key, DATABASE, self.line.id)
        except ObjectExists:
            ref = self._vault.adopt(name, self.line.id)
        with self._memory.changing() as state:
            self.line.fresh.append(ref)
            state.stored_bytes += ref.size
            self.line.histories[timeline] = lsn.switches(text)

    def _check_timeline(self, file: File) -> None:
        """Go over to a later timeline where it goes on with all that is stored; else the line ends."""
        if file.timeline == self.line.timeline:
            return
        if file.timeline not in self.line.histories:
            self._received()  # the history came before the file, and after our last look
        left = self.line.histories.get(file.timeline, {}).get(self.line.timeline)
        if file.timeline < self.line.timeline or left is None or left < self.line.stored:
            raise LineLostError(
                "OtherTimeline",
                f"The database is on timeline {file.timeline}, which does not go on with what is stored of timeline "
                f"{self.line.timeline}: it was brought back to an earlier moment. A new line begins.",
            )
        with self._memory.changing():
            self.line.timeline = file.timeline


def _is_piece(name: str, segment: str) -> bool:
    found = names.piece_of(name)
    return found is not None and found[0] == segment and found[2] - found[1] < SEGMENT_SIZE
