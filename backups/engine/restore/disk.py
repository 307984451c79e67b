"""Writing files that came from a store: into folders of our own, in pieces, with owner and mode. Imports no Django."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from backups.engine.restore.errors import Cancelled, RestoreError
from backups.engine.settings import Tools

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
LOOK = 1.0
"""Seconds between two looks at how much is free."""
_libc = ctypes.CDLL(None, use_errno=True)


def write_all(handle: int, data: bytes | memoryview) -> None:
    """Write all of it. Raises `OSError`."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def create(path: str | Path, mode: int, owner: tuple[int, int] | None) -> int:
    """Open a new file for writing. Raises `OSError`, also where something lies there already."""
    handle = os.open(path, _NEW, 0o600)
    try:
        if owner is not None:
            os.fchown(handle, *owner)
        os.fchmod(handle, mode & 0o777)
    except BaseException:
        os.close(handle)
        raise
    return handle


def sync(paths: Iterable[Path]) -> None:
    """Make all that was written to these paths' file systems outlive a power cut (syncfs(2)). Raises `OSError`."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if _libc.syncfs(handle) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
        finally:
            os.close(handle)


def failed(error: OSError, where: str) -> RestoreError:
    """Return what a disk's refusal means."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return RestoreError(
            f"The disk of {where} is full. What was fetched stays. Make room and start the restore again.",
            code="DiskFull",
            retry=True,
        )
    return RestoreError(
        f"{where} can't be written ({error.strerror or error}). What was fetched stays.", code="DiskFault", retry=True
    )


def check_room(path: Path, wanted: int, *, spare: int = 0) -> None:
    """Raise `RestoreError` where the disk surely has no room for `wanted` bytes more and `spare` that stay free."""
    free = _free(path)
    if free < wanted + spare:
        kept = f", of which {spare // 10**6} MB are kept for others" if spare else ""
        raise RestoreError(
            f"The restore needs about {wanted // 10**6 + 1} MB on the disk of {path}, and {free // 10**6} MB are free"
            f"{kept}. Nothing was restored. Make room, or restore elsewhere.",
            code="DiskFull",
            retry=True,
        )


@contextlib.contextmanager
def spared(paths: Iterable[Path], spare: int, stop: threading.Event) -> Iterator[None]:
    """Set `stop` when less than `spare` bytes are free where these paths are, and then raise `RestoreError`.

    That there was room at the beginning says little: others write to the same disk.
    """
    low, over = threading.Event(), threading.Event()
    places = list(paths)

    def watch() -> None:
        while not over.wait(LOOK):
            with contextlib.suppress(OSError):  # a folder may go while we look
                if any(_free(place) < spare for place in places):
                    low.set()
                    stop.set()
                    return

    watcher = threading.Thread(target=watch, name="restore-disk", daemon=True)
    if spare:
        watcher.start()
    try:
        yield
    except Cancelled:
        if not low.is_set():
            raise
        raise RestoreError(
            f"The disk of {places[0]} has less than the {spare // 10**6} MB left that are kept for others. What was "
            "fetched stays. Make room and start the restore again.",
            code="DiskFull",
            retry=True,
        ) from None
    finally:
        over.set()
        if spare:
            watcher.join()


def _free(path: Path) -> int:
    place = path
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def same(one: Path, other: Path) -> bool:
    """Return whether two paths, which need not be there yet, are on one file system."""
    places = []
    for place in (one, other):
        found = place
        while not found.exists():
            found = found.parent
        places.append(found.stat().st_dev)
    return places[0] == places[1]


def going(place: Path) -> Path:
    """Return where a folder lies while `remove` removes it."""
    return place.with_name(f"{place.name}.going")


def remove(place: Path) -> None:
    """Remove a folder so that a call that is killed meanwhile leaves nothing that could be taken for whole."""
    place.rename(going(place))
    shutil.rmtree(going(place))


def wipe(place: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink()


def new_sockets(tools: Tools) -> Path:
    """Make a short folder for a socket, closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="hearth-restore-", dir="/tmp"))  # a socket's path ends at 107 bytes
    if (owner := owner_of(tools)) is not None:
        os.chown(folder, *owner)
    return folder


def owner_of(tools: Tools) -> tuple[int, int] | None:
    """Return whose the restored files are; None: ours."""
    if tools.uid is None or os.geteuid() != 0:
        return None
    return tools.uid, tools.gid if tools.gid is not None else tools.uid
