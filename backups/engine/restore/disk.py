"""Writing files that came from a store: into folders of our own, in pieces, with owner and mode. Imports no Django."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from pathlib import Path

from backups.engine.restore.errors import RestoreError

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
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


def check_room(path: Path, wanted: int) -> None:
    """Raise `RestoreError` where the disk surely has no room for `wanted` bytes more."""
    place = path
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    if free < wanted:
        raise RestoreError(
            f"The restore needs about {wanted // 10**6 + 1} MB on the disk of {path}, and {free // 10**6} MB are free. "
            "Nothing was restored. Make room, or restore elsewhere.",
            code="DiskFull",
            retry=True,
        )
