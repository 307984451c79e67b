"""How much memory this process keeps of what it does not use any more: as little as glibc lets it. Imports no Django.

Every thread would else have an arena of its own, in which a megabyte here and there holds many that are free: an engine
that had taken one restore point kept twice the memory that it began with. Elsewhere than with glibc nothing is done.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Any

_ARENA_MAX, _TRIM_THRESHOLD, _MMAP_THRESHOLD = -8, -1, -3
"""Of `mallopt(3)`."""
_ARENAS = 2
_KEPT = 4 << 20
"""Bytes at the top of the heap that are kept for what comes next."""
_APART = 1 << 20
"""From this size on a block is a mapping of its own, whose memory goes back as soon as it is freed."""


def keep_little() -> None:
    """Call it once, before the threads begin."""
    with_glibc = _glibc("mallopt")
    if with_glibc is not None:
        for option, value in ((_ARENA_MAX, _ARENAS), (_TRIM_THRESHOLD, _KEPT), (_MMAP_THRESHOLD, _APART)):
            with_glibc(option, value)


def give_back() -> None:
    """Give what is free back to the system, after work that needed much. Takes some milliseconds."""
    gc.collect()
    with_glibc = _glibc("malloc_trim")
    if with_glibc is not None:
        with_glibc(0)


def _glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None)
