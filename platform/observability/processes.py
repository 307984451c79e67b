"""Where several processes count together for Prometheus. Imports neither Django nor Prometheus' client."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

FOLDER, PROCESS = "PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_PROCESS"
ROOM = 1024 * 1024
"""Bytes of each file: what the library makes them at first, and enough for thousands of series."""


def begin(folder: Path, processes: Sequence[str]) -> None:
    """Begin at zero: an empty folder, with room on the disk for what these processes will count.

    They write by mmap, and one that writes to a page which a full disk has no room for is killed by the kernel.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    for process in processes:
        for kind in ("counter", "histogram"):
            with (folder / f"{kind}_{process}.db").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, ROOM)
