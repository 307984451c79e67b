"""What makes a change of files outlive a power cut. Imports no Django and no cryptography."""

from __future__ import annotations

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make what was made, renamed or removed in `folder` durable: syncing a file does not sync its name (fsync(2))."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
