"""What the engine remembers over its own end: its line, and what the next moment must name. Imports no Django.

One small file, replaced as a whole and synced before WAL is removed from the spool. Losing it costs a new line (and a
base backup for it), never a backup: everything that can be restored is told by the store alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

import msgspec

from backups.engine.hearth import OrderReport, PointReport
from backups.engine.manifest import Ref
from security.durable import replace_file

STATE = "state.json"
STATUS = "status.json"
ENDED_KEPT = 20


class StateError(Exception):
    """The state folder can't be used. The text is for a person."""


class Line(msgspec.Struct, kw_only=True):
    """An uninterrupted history of one database, as far as it is stored. Places are LSNs as numbers."""

    id: str
    system: str
    timeline: int
    began: int
    stored: int
    """All WAL from `began` to here is in the store."""
    fresh: list[Ref] = []
    """WAL objects that no moment names yet, in order."""
    number: int = 0
    """Of the next moment."""
    previous: str = ""
    """SHA-256 of the moment before, as stored."""
    moment_at: datetime | None = None
    pending: str = ""
    """The id of a moment that may be in the store or not: the engine was about to put it there."""
    histories: dict[int, dict[int, int]] = {}
    """Of each later timeline: where the timelines before it were left."""
    begun: datetime | None = None
    """The moment of its first restore point."""
    until: datetime | None = None
    """Every commit up to here is in the store."""


class Ended(msgspec.Struct, kw_only=True):
    """A line that ended, and why. The window of its restore points stays."""

    line: str
    at: datetime
    reason: str
    text: str
    begun: datetime | None = None
    until: datetime | None = None
    told: bool = False
    """Whether Hearth knows."""


class State(msgspec.Struct, kw_only=True):
    """All of it."""

    of: str = ""
    """Whose backups in which store: of others it says nothing."""
    line: Line | None = None
    ended: list[Ended] = []
    pending: PointReport | None = None
    """A restore point that may be in the store or not: its manifest was about to be put there."""
    point: str = ""
    """The newest restore point that is stored."""
    point_at: datetime | None = None
    point_kind: str = ""
    point_line: str = ""
    media_until: datetime | None = None
    stored_bytes: int = 0
    untold: list[PointReport] = []
    """Restore points that Hearth does not know yet."""
    orders: list[OrderReport] = []
    """Orders that ended, until Hearth has heard it."""
    final: OrderReport | None = None
    """The final backup that was ordered last, once it is whole: who ordered it may ask again at any time."""
    resting: bool = False
    """After a final backup: nothing is to be stored any more."""


class Memory:
    """The state folder, held by one engine at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = State()
        self._lock: IO[str] | None = None
        self._changing = threading.RLock()

    def open(self, of: str) -> None:
        """Take the folder and read what is there about `of`. Raises `StateError`."""
        self.state.of = of
        try:
            self.folder.mkdir(mode=0o710, parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("a", encoding="ascii")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            data = (self.folder / STATE).read_bytes()
        except BlockingIOError:
            raise StateError(
                f"Another engine works in {self.folder}. Nothing was changed. Stop that one first."
            ) from None
        except FileNotFoundError:
            return
        except OSError as error:
            raise StateError(f"The engine can't use {self.folder}: {error.strerror}. Nothing was changed.") from None
        with contextlib.suppress(msgspec.DecodeError):  # as if it were lost: a new line
            found = msgspec.json.decode(data, type=State)
            self.state = found if found.of == of else self.state

    @contextmanager
    def changing(self) -> Iterator[State]:
        """Change the state, one thread at a time, and write it down durably. Raises `OSError`: then it is only known
        here, and written with the next change."""
        with self._changing:
            yield self.state
            self._write(STATE, msgspec.json.encode(self.state), sync=True)

    @contextmanager
    def reading(self) -> Iterator[State]:
        """Look at the state while nobody changes it."""
        with self._changing:
            yield self.state

    def tell(self, status: dict[str, object]) -> None:
        """Leave a status for whoever watches this process."""
        self._write(STATUS, msgspec.json.encode(status), sync=False)

    def close(self) -> None:
        """Give the folder free."""
        if self._lock is not None:
            self._lock.close()

    def _write(self, name: str, data: bytes, *, sync: bool) -> None:
        replace_file(self.folder / name, data, sync=sync)
