"""Making the root key file. Imports no Django and no cryptography: the supervisor makes it before anything runs."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from security.durable import sync_folder

KEY = 32
"""Bytes of the key."""


def key_files(path: Path) -> list[Path]:
    """Return the root keys that are there: `path` and those that rotations made beside it. The first may be gone."""
    beside = sorted(path.parent.glob(f"{path.stem}-*{path.suffix}"))
    return [each for each in (path, *beside) if each.exists()]


def ensure_root_key(path: Path) -> None:
    """Create the root key with mode 0600 unless it exists. A crash in the middle leaves either a whole key or none."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists():
        return
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-key-") as file:  # made with mode 0600
        file.write(os.urandom(KEY))
        file.flush()
        os.fsync(file.fileno())
        # A link fails where a file is, so two that start at once agree on one key.
        with contextlib.suppress(FileExistsError):
            os.link(file.name, path)
    sync_folder(path.parent)
