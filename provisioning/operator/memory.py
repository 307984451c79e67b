"""Gives back to the system what a burst of changes has needed, once it is over.

What hundreds of servers need at once leaves holes all over the C library's heap when it is freed: some megabytes that
are never used again, and that the library keeps until it is told.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable

EVERY = 5.0  # seconds


def trim() -> None:
    """Give free pages back. Libraries other than GNU's have no such call, and do it by themselves or not at all."""
    call = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if call is not None:
        call(0)


async def give_back(
    busy: Callable[[], bool], done: Callable[[], float], *, trim: Callable[[], None] = trim, every: float = EVERY
) -> None:
    """Give memory back whenever nothing is being done and something was, until cancelled. `done`: how much, so far."""
    before = done()
    while True:
        await asyncio.sleep(every)
        if not busy() and done() != before:
            before = done()
            trim()
