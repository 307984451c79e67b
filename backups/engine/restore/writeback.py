"""Lets the disk begin with what was written, so that little is left for the end. Imports no Django.

Linux else keeps gigabytes in memory until somebody asks for them to be on the disk, and the disk has nothing to do
meanwhile. Where there is no sync_file_range(2) nothing is begun early.
"""

from __future__ import annotations

import ctypes
from typing import Any

_BEGIN = 2
"""SYNC_FILE_RANGE_WRITE: begin, and wait for nothing."""
STEP = 8 << 20
"""Bytes after which the disk may begin with a file that is still being written."""
WORTH = 1 << 18
"""Smaller files are left to the end: thousands of little writes would only wait for each other."""
_libc = ctypes.CDLL(None)
_begin: Any = getattr(_libc, "sync_file_range", None)


class Writeback:
    """One file that is written from its beginning on."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._waiting = 0

    def wrote(self, size: int) -> None:
        """Tell that so many bytes more are written."""
        self._waiting += size
        if self._waiting >= STEP:
            self.end()

    def end(self) -> None:
        """Have the disk begin with what is left, if it is worth it. What goes wrong here, the file's own sync tells."""
        if self._waiting >= WORTH and _begin is not None:
            zero = ctypes.c_longlong(0)
            _begin(self._handle, zero, zero, _BEGIN)
        self._waiting = 0
