"""From the store to the disk: the base backup's files, and the media. Imports no Django.

Nothing is kept twice: what comes is decrypted, decompressed and written where it belongs. Everything is compared with
what the engine said it stored.
"""

from __future__ import annotations

import os
import queue
import tarfile
import threading
from collections.abc import Callable, Generator, Iterable
from pathlib import Path, PurePosixPath
from typing import IO, cast

import google_crc32c

from backups.engine.contents import MANIFEST, ContentError, Unpacked, check_files
from backups.engine.restore.disk import create, write_all
from backups.engine.restore.errors import Cancelled

_AHEAD = 8
_WAIT = 0.2
_READ = 1 << 20
_LARGEST_MANIFEST = 1 << 30


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
        stream = Unpacked(pieces)
        found: dict[str, tuple[int, int]] = {}
        listed = b""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|", bufsize=_READ) as archive:
                for member in archive:
                    name = _checked(member.name)
                    if member.isdir():
                        self._make(name)
                    elif member.isreg():
                        file = cast("IO[bytes]", archive.extractfile(member))
                        found[name] = self._file(name, member, file)
                        if name == MANIFEST:
                            listed = self._manifest(found.pop(name)[0])
                    else:
                        raise ContentError(f"{member.name!r} in its archive is neither a file nor a folder.")
            while stream.read(_READ):
                pass
        except (tarfile.TarError, UnicodeDecodeError) as error:
            raise ContentError(f"Its archive is broken ({error}).") from None
        check_files(found, listed, system)
        return len(found), sum(size for size, _ in found.values())

    def _file(self, name: str, member: tarfile.TarInfo, file: IO[bytes]) -> tuple[int, int]:
        self._make(str(PurePosixPath(name).parent))
        handle = create(self._folder / name, member.mode, self._owner)
        crc = 0
        try:
            while piece := file.read(_READ):
                crc = google_crc32c.extend(crc, piece)
                write_all(handle, piece)
        finally:
            os.close(handle)
        return member.size, crc

    def _make(self, name: str) -> None:
        if name in {".", ""} or name in self._made:
            return
        self._make(str(PurePosixPath(name).parent))
        path = self._folder / name
        path.mkdir(mode=0o700, exist_ok=True)
        if self._owner is not None:
            os.chown(path, *self._owner)
        self._made.add(name)

    def _manifest(self, size: int) -> bytes:
        if size > _LARGEST_MANIFEST:
            raise ContentError("Its manifest is larger than one can be.")
        return (self._folder / MANIFEST).read_bytes()


def _checked(name: str) -> str:
    """Return a member's path below the data folder. Raises `ContentError` for one that leads out of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or len(path.parts) > 20:
        raise ContentError(f"{name!r} in its archive leads out of the folder.")
    return str(path)
