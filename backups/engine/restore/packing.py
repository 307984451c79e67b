"""An exported folder as one object of the store: a tar archive, written as it is sealed. Imports no Django."""

from __future__ import annotations

import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

from backups.engine.restore.errors import Cancelled

_READ = 1 << 20
_BLOCK = tarfile.BLOCKSIZE


def files(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, in order of their names."""
    for above, folders, found in os.walk(folder):
        folders.sort()
        yield from (Path(above) / name for name in sorted(found))


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in files(folder))


def tar(folder: Path, top: str, stop: threading.Event) -> Iterator[bytes]:
    """Yield a tar archive (POSIX.1-2001, "pax") of all files below `folder`, which lie below `top` in it.

    Owners say nothing to whoever unpacks it, so they are left out. Raises `Cancelled`.
    """
    for path in files(folder):
        member = tarfile.TarInfo(f"{top}/{path.relative_to(folder)}")
        member.size, member.mode = path.stat().st_size, 0o600
        member.mtime = int(path.stat().st_mtime)
        yield member.tobuf(tarfile.PAX_FORMAT)
        yield from _content(path, member.size, stop)
    yield bytes(2 * _BLOCK)


def _content(path: Path, size: int, stop: threading.Event) -> Iterator[bytes]:
    left = size
    with path.open("rb") as file:
        while left:
            if stop.is_set():
                raise Cancelled
            piece = file.read(min(_READ, left))
            if not piece:
                raise OSError(f"{path} became shorter while it was read")
            left -= len(piece)
            yield piece
    yield bytes(-size % _BLOCK)
