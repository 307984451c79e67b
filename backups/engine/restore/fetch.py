"""From the store to the disk: the base backup's files, and the media. Imports no Django.

Nothing is kept twice: what comes is decrypted, decompressed and written where it belongs. Everything is compared with
what the engine said it stored.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from pathlib import Path, PurePosixPath

import google_crc32c

from backups.engine.archive import ArchiveError, Member, members
from backups.engine.contents import MANIFEST, ContentError, check_files, check_manifest_size, unpacked
from backups.engine.restore.disk import create, write_all
from backups.engine.restore.errors import Cancelled
from backups.engine.restore.writeback import Writeback

_AHEAD = 4
_WAIT = 0.2


def ahead(
    pieces: Iterable[memoryview], stop: threading.Event, passed: Callable[[int], None]
) -> Generator[bytes, None, None]:
    """Yield the pieces that another thread reads and decrypts meanwhile: both sides have work for a core."""
    reader = _Ahead(pieces, stop)
    try:
        while (piece := reader.take()) is not None:
            passed(len(piece))
            yield piece
    finally:
        reader.end()


class _Ahead:
    def __init__(self, pieces: Iterable[memoryview], stop: threading.Event) -> None:
        self._found: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
        self._stop = stop
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(pieces,), name="restore-read", daemon=True)
        self._thread.start()

    def take(self) -> bytes | None:
        """Return the next piece, None at the end. Raises what reading raised, and `Cancelled`."""
        while True:
            try:
                found = self._found.get(timeout=_WAIT)
            except queue.Empty:
                if self._stop.is_set():
                    raise Cancelled from None
                continue
            if isinstance(found, BaseException):
                raise found
            return found

    def end(self) -> None:
        """Leave, also early."""
        self._ended.set()
        self._thread.join()

    def _read(self, pieces: Iterable[memoryview]) -> None:
        try:
            for piece in pieces:
                if not self._put(bytes(piece)):
                    return
            self._put(None)
        except BaseException as error:  # it is raised where the pieces are used
            self._put(error)

    def _put(self, each: bytes | BaseException | None) -> bool:
        while not (self._ended.is_set() or self._stop.is_set()):
            try:
                self._found.put(each, timeout=_WAIT)
            except queue.Full:
                continue
            return True
        return False


class Base:
    """Writes a base backup's archive below `folder`, which is nobody else's yet."""

    def __init__(self, folder: Path, owner: tuple[int, int] | None) -> None:
        self._folder = folder
        self._owner = owner
        self._made = set[str]()

    def write(self, pieces: Iterable[bytes], system: str) -> tuple[int, int]:
        """Write all of it and return files and bytes. Raises `ContentError` unless it is what PostgreSQL wrote."""
        found: dict[str, tuple[int, int]] = {}
        writing: _Writing | None = None
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            for member, piece in members(unpacked(pieces)):
                if member.kind != "file":
                    self._make(_checked(member))
                    continue
                writing = writing or self._begin(member)
                if piece is not None:
                    writing.add(piece)
                else:
                    found[_checked(member)] = member.size, writing.end()
                    writing = None
        except ArchiveError as error:
            raise ContentError(f"Its archive is broken: {error}.") from None
        finally:
            if writing is not None:
                writing.end()
        size, _ = found.pop(MANIFEST, (0, 0))
        check_manifest_size(size)
        check_files(found, (self._folder / MANIFEST).read_bytes() if size else b"", system)
        return len(found), sum(size for size, _ in found.values())

    def _begin(self, member: Member) -> _Writing:
        name = _checked(member)
        self._make(str(PurePosixPath(name).parent))
        return _Writing(create(self._folder / name, member.mode, self._owner))

    def _make(self, name: str) -> None:
        if name in {".", ""} or name in self._made:
            return
        self._make(str(PurePosixPath(name).parent))
        path = self._folder / name
        path.mkdir(mode=0o700, exist_ok=True)
        if self._owner is not None:
            os.chown(path, *self._owner)
        self._made.add(name)


class _Writing:
    """One file on its way to the disk, and its CRC-32C."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._writeback = Writeback(handle)
        self._crc = 0

    def add(self, piece: memoryview) -> None:
        self._crc = google_crc32c.extend(self._crc, bytes(piece))
        write_all(self._handle, piece)
        self._writeback.wrote(len(piece))

    def end(self) -> int:
        self._writeback.end()
        os.close(self._handle)
        return self._crc


def _checked(member: Member) -> str:
    """Return a member's path below the data folder. Raises `ContentError` for one that does not belong there."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\0" in member.name or len(path.parts) > 20:
        raise ContentError(f"{member.name!r} in its archive leads out of the folder.")
    if not member.kind:
        raise ContentError(f"{member.name!r} in its archive is neither a file nor a folder.")
    return str(path)
