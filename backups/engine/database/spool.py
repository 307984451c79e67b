"""The folder that pg_receivewal writes to. It belongs to the database's user: no link in it is followed."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from backups.engine.database import lsn
from backups.engine.database.receiver import PARTIAL
from backups.engine.names import SEGMENT_SIZE

PIECE = 1 << 20
HISTORY = ".history"
HISTORY_MOST = 1 << 20


@dataclass(frozen=True)
class File:
    """A segment in the spool."""

    timeline: int
    place: int
    """Its first LSN."""
    name: str

    @property
    def segment(self) -> str:
        """Its 24 digits."""
        return lsn.name(self.timeline, self.place)


@dataclass
class Spool:
    """What lies there now. Of two timelines that have the same segment the later one counts."""

    folder: Path
    finished: dict[int, File] = field(default_factory=dict)
    partial: File | None = None
    histories: dict[int, str] = field(default_factory=dict)
    others: list[File] = field(default_factory=list)
    bytes: int = 0

    @classmethod
    def look(cls, folder: Path) -> Spool:
        """Read the folder's names."""
        spool = cls(folder)
        with os.scandir(folder) as entries:
            for entry in entries:
                spool._take(entry.name)
        spool.bytes = SEGMENT_SIZE * (len(spool.finished) + len(spool.others) + (spool.partial is not None))
        return spool

    def _take(self, name: str) -> None:
        if name.endswith(HISTORY):
            with contextlib.suppress(ValueError):
                self.histories[int(name.removesuffix(HISTORY), 16)] = name
            return
        try:
            file = File(*lsn.parse(name.removesuffix(PARTIAL)), name)
        except ValueError:
            return  # somebody else's
        known = self.partial if name.endswith(PARTIAL) else self.finished.get(file.place)
        if known is not None:
            file, older = max(file, known, key=_rank), min(file, known, key=_rank)
            self.others.append(older)
        if name.endswith(PARTIAL):
            self.partial = file
        else:
            self.finished[file.place] = file

    @property
    def oldest(self) -> int | None:
        """The first LSN of all that is there."""
        places = [*self.finished, *([self.partial.place] if self.partial else [])]
        return min(places, default=None)

    def remove_below(self, place: int) -> None:
        """Remove what ends at or before `place`: it is stored."""
        for file in (*self.finished.values(), *self.others, *([self.partial] if self.partial else [])):
            if file.place + SEGMENT_SIZE <= place:
                (self.folder / file.name).unlink(missing_ok=True)

    def history(self, timeline: int) -> str:
        """Return a history file's text."""
        with opened(self.folder / self.histories[timeline]) as handle:
            return os.read(handle, HISTORY_MOST).decode(errors="replace")


def _rank(file: File) -> tuple[int, int]:
    return file.timeline, file.place


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a plain file and nothing else. Raises `OSError`."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{path} is no plain file.")
        yield handle
    finally:
        os.close(handle)


def packed(handle: int, begin: int, end: int, level: int) -> Iterator[bytes]:
    """Yield bytes `begin` to `end` of an open segment as one zstd frame (RFC 8878). Raises `OSError` if it is short."""
    chunker = zstandard.ZstdCompressor(level=level).chunker(size=end - begin, chunk_size=PIECE)
    while begin < end:
        data = os.pread(handle, min(PIECE, end - begin), begin)
        if not data:
            raise OSError("A WAL segment in the spool is shorter than it was. It is received anew.")
        begin += len(data)
        yield from chunker.compress(data)
    yield from finish(chunker)


def finish(chunker: zstandard.ZstdCompressionChunker) -> Iterator[bytes]:
    """Yield the end of the frame."""
    yield from chunker.finish()  # type: ignore[no-untyped-call]  # zstandard's own types lack this one's
