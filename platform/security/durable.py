"""What makes a change of files outlive a power cut. Imports no Django and no cryptography."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make what was made, renamed or removed in `folder` durable: syncing a file does not sync its name (fsync(2))."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, data: bytes, *, mode: int = 0o600, gid: int | None = None, sync: bool = True) -> None:
    """Replace a file as a whole, with that mode and group from its first moment in place. Raises `OSError`.

    A crash or a full disk leaves the old one or the new one, never a half; without `sync` a power cut may leave either.
    """
    number, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
            if gid is not None:
                os.fchown(file.fileno(), -1, gid)
            os.fchmod(file.fileno(), mode)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    if sync:
        sync_folder(path.parent)
