"""One line after the other: begins it with a slot, keeps its receiver, stores its WAL, and notices when it is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from backups.engine import names
from backups.engine.database import lsn
from backups.engine.database.postgres import DatabaseError, Facts, Session, Slot
from backups.engine.database.receiver import STATUS_SECONDS, Receiver
from backups.engine.database.spool import Spool
from backups.engine.database.wal import LineLostError, Shipper
from backups.engine.names import SEGMENT_SIZE
from backups.engine.state import ENDED_KEPT, Ended, Line
from backups.engine.stores.base import NoSuchObject
from backups.engine.work import Work

STORE, RECEIVER = "store", "receiver"
"""Parts that may be at fault by themselves."""
TURN, URGENT_TURN, BEHIND_TURN = 1.0, 0.2, 2.0
SHORT_LIVED, LONGEST_WAIT = 600.0, 600.0
"""A line that lives shorter than this makes the next one wait, each time longer."""


class Stream:
    """The WAL of one server. `turn` belongs to one thread, all else is for any."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.shipper: Shipper | None = None
        self.receiver: Receiver | None = None
        self._resumed = False
        self._rested = False
        self._look_at = 0.0
        self._began_at = 0.0
        self._wait = 0.0
        self._ship_at = 0.0
        self._ship_wait = 0.0
        self.wake: Callable[[], None] = lambda: None
        """Called by any thread when somebody waits for the next `turn`."""
        self.opened: Callable[[], None] = lambda: None
        """Called when there is a line."""

    def turn(self) -> float:
        """Do what there is to do; return the seconds to wait. Raises what the parts raise."""
        if self._work.memory.state.resting:
            self._rest()
            return TURN
        try:
            if self.shipper is None:
                self._open()
            return self._turn()
        except LineLostError as lost:
            self.end(lost.reason, str(lost))
            return 0.0

    def reach(self, place: int, seconds: float) -> bool:
        """Wait until all WAL before `place` is stored; False when that does not happen in time."""
        shipper = self.shipper
        return shipper is not None and shipper.reach(place, seconds)

    def close(self) -> None:
        """End the receiver. The line goes on with the next start."""
        if self.receiver is not None:
            self.receiver.stop()
        if self.shipper is not None:
            self.shipper.end()

    def end(self, reason: str, text: str) -> None:
        """End the line: what is stored stays, and a new one begins with the next turn."""
        work = self._work
        self.close()
        self.shipper = self.receiver = None
        with contextlib.suppress(DatabaseError), work.postgres.session() as session:
            session.drop_slot()
        with work.memory.changing() as state:
            line, state.line = state.line, None
            if line is not None:
                ended = Ended(
                    line=line.id, at=datetime.now(UTC), reason=reason, text=text, begun=line.begun, until=line.until
                )
                state.ended = [*state.ended, ended][-ENDED_KEPT:]
        if line is None:
            return
        shutil.rmtree(self._spool(line), ignore_errors=True)
        work.progress.say("line-ended", line=line.id, reason=reason, text=text)
        short = time.monotonic() - self._began_at < SHORT_LIVED
        self._wait = min(max(self._wait * 2, 5.0), LONGEST_WAIT) if short and self._began_at else 0.0

    def _rest(self) -> None:
        if self._work.memory.state.line is not None:
            self.end("Final", "The final backup is stored; this line was not needed any more.")
        if not self._rested:  # its walsender may have been there for a moment more than its receiver
            with self._work.postgres.session() as session:
                session.drop_slot()
            self._rested = True

    def _turn(self) -> float:
        shipper = self.shipper
        assert shipper is not None  # noqa: S101 (for the type checker: the caller opened it)
        self._check_receiver()
        if time.monotonic() >= self._ship_at:
            self._ship(shipper)
        urgent = shipper.urgent and time.monotonic() >= self._ship_at
        if time.monotonic() >= self._look_at or urgent:
            self._look(shipper)
        self._check_spool(shipper)
        return URGENT_TURN if urgent else TURN

    def _open(self) -> None:
        """Go on with the line that is written down, or begin one."""
        with self._work.postgres.session() as session:
            facts = session.facts()
            line = self._work.memory.state.line
            if line is not None:
                self._check(line, facts, session.slot())
            else:
                line = self._begin(session, facts)
        folder = self._spool(line)
        for each in folder.parent.iterdir():
            if each != folder:
                shutil.rmtree(each, ignore_errors=True)
        work = self._work
        shipper = Shipper(work.vault, work.keys, work.memory, line, folder, wake=self.wake)
        self.receiver = Receiver(
            work.postgres,
            work.settings.tools,
            folder,
            work.progress,
            before_start=lambda: self._advance(line),
            on_end=self._look_soon,
        )
        self.receiver.start()
        self.shipper, self._resumed, self._look_at, self._ship_at = shipper, False, 0.0, 0.0
        self._rested = False
        work.progress.say("line", line=line.id, stored=lsn.text(line.stored))
        self.opened()

    def _begin(self, session: Session, facts: Facts) -> Line:
        if self._began_at and time.monotonic() < self._began_at + self._wait:
            raise DatabaseError("Lines of WAL end soon after they began; the next one waits a little.")
        # A line whose WAL nobody takes would only fill the customer's disk.
        with contextlib.suppress(NoSuchObject):
            self._work.vault.store.head(names.point(names.new_id()))
        place = lsn.begin_of(session.make_slot())
        line = Line(id=names.new_id(), system=facts.system, timeline=facts.timeline, began=place, stored=place)
        self._began_at = time.monotonic()
        with self._work.memory.changing() as state:
            state.line = line
        return line

    def _check(self, line: Line, facts: Facts, slot: Slot | None) -> None:
        """Raise `LineLostError` where the database can't go on with this line. The receiver does not run."""
        if facts.system != line.system:
            raise LineLostError(
                "OtherDatabase", "The database is another one than this line's: its system identifier is not the same."
            )
        if facts.timeline < line.timeline or (slot is None and facts.timeline > line.timeline):
            # A slot of before that would give WAL that this line has already had, and other.
            raise LineLostError(
                "OtherTimeline",
                f"The database is on timeline {facts.timeline}, and what is stored on timeline {line.timeline}: it was "
                "brought back to an earlier moment. A new line begins.",
            )
        _check_slot(slot)
        needed, spool = lsn.begin_of(line.stored), None
        with contextlib.suppress(FileNotFoundError):
            spool = Spool.look(self._spool(line))
        while spool is not None and needed in spool.finished:
            needed += SEGMENT_SIZE
        if slot is not None and slot.restart is not None and lsn.begin_of(slot.restart) > needed:
            raise LineLostError(
                "Gap",
                f"WAL from {lsn.text(needed)} on is not in the spool, and the server keeps it from "
                f"{lsn.text(slot.restart)} on only. A new line begins with a base backup of its own.",
            )

    def _ship(self, shipper: Shipper) -> None:
        policy = self._work.policy
        try:
            if not self._resumed:
                shipper.resume()
                self._resumed = True
            shipper.ship(uploads=policy.uploads, level=policy.compression)
        except FileNotFoundError:
            return  # the receiver is about to make the folder, or renamed a file: the next turn sees it
        except LineLostError:
            raise
        except Exception as error:  # of the store or the keys; the receiver and the database are looked after meanwhile
            self._ship_wait = min(max(self._ship_wait * 2, 1.0), 15.0)
            self._ship_at = time.monotonic() + self._ship_wait
            self._work.faults.met(STORE, error)
            return
        self._ship_wait = 0.0
        self._work.faults.clear(STORE)

    def _check_receiver(self) -> None:
        receiver = self.receiver
        if receiver is None or receiver.is_steady:
            self._work.faults.clear(RECEIVER)
        elif receiver.trouble:
            code = "DiskFull" if os.strerror(errno.ENOSPC) in receiver.trouble else "ReceiverDown"
            self._work.faults.set(RECEIVER, code, f"WAL is not received: {receiver.trouble}")

    def _look(self, shipper: Shipper) -> None:
        """Ask the database how it is, and store the tail."""
        work = self._work
        self._look_at = time.monotonic() + work.policy.tail_every
        with work.postgres.session() as session:
            _check_slot(session.slot())
            now = session.now()
            self._await_written(session, now.flushed)
            if self._resumed and time.monotonic() >= self._ship_at:
                shipper.tail(session, work.policy.compression)
        if shipper.line.stored >= now.flushed:
            shipper.line.until = now.at
        else:
            self._look_at = time.monotonic() + BEHIND_TURN

    def _await_written(self, session: Session, place: int) -> None:
        end = time.monotonic() + STATUS_SECONDS + 1
        while session.written() < place and time.monotonic() < end:
            if self._work.stop.wait(0.1):
                return

    def _check_spool(self, shipper: Shipper) -> None:
        most = self._work.policy.spool_bytes
        with contextlib.suppress(FileNotFoundError):
            shipper.waiting_bytes = Spool.look(shipper.folder).bytes
        if shipper.waiting_bytes > most:
            raise LineLostError(
                "SpoolFull",
                f"More than {most} bytes of WAL waited for a store that did not take them. They were given up, rather "
                "than fill the server's disk. What is stored stays; a new line begins when the store answers.",
            )

    def _advance(self, line: Line) -> None:
        """Let the receiver begin behind what is stored. It tells the server how far it is too seldom: where a full disk
        ends it again and again, it would receive the same segments for ever."""
        with contextlib.suppress(DatabaseError), self._work.postgres.session() as session:
            session.advance_slot(lsn.begin_of(line.stored))

    def _look_soon(self) -> None:
        self._look_at = 0.0

    def _spool(self, line: Line) -> Path:
        """Return the line's spool; the folder above it is one that the database's user may pass."""
        state, tools = Path(self._work.settings.state), self._work.settings.tools
        (state / "spool").mkdir(mode=0o711, exist_ok=True)
        if tools.gid is not None:
            os.chown(state, -1, tools.gid)
            state.chmod(0o710)
        (state / "spool").chmod(0o711)
        return state / "spool" / line.id


def _check_slot(slot: Slot | None) -> None:
    if slot is None:
        raise LineLostError("SlotLost", "The replication slot is gone, so WAL may be missing. A new line begins.")
    if slot.status == "lost":
        raise LineLostError(
            "SlotLost",
            "The server removed WAL that was not received yet, because it kept too much (max_slot_wal_keep_size). A "
            "new line begins with a base backup of its own.",
        )
