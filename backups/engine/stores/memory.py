"""Bounded memory for parts of objects on their way, shared by everything that one store does."""

from __future__ import annotations

import mmap
import threading

MIB = 1 << 20
TOTAL = 24 * MIB


class Memory:
    """Buffers of up to `total` bytes together, in pages of their own: what is freed goes back to the system.

    What is sent comes back by itself, so waiting for room always ends. What is read ahead comes back when its reader
    goes on, who may be the pieces of a put that waits for room: it gets half of all at most, and never waits.
    """

    def __init__(self, total: int = TOTAL) -> None:
        self._total = total
        self._sending = 0
        self._ahead = 0
        self._spare: list[mmap.mmap] = []
        self._changed = threading.Condition()

    def take(self, size: int) -> mmap.mmap:
        """Return a buffer of that size once there is room for it; its contents are anything."""
        with self._changed:
            self._changed.wait_for(lambda: not self._sending or self._fits(size))
            self._sending += size
            return self._buffer(size)

    def give(self, buffer: mmap.mmap) -> None:
        """Give back what `take` returned."""
        with self._changed:
            self._sending -= len(buffer)
            self._keep(buffer)

    def try_take_ahead(self, size: int) -> mmap.mmap | None:
        """Return a buffer to read ahead into, if there is room at this moment."""
        with self._changed:
            if self._ahead + size > self._total // 2 or not self._fits(size):
                return None
            self._ahead += size
            return self._buffer(size)

    def give_ahead(self, buffer: mmap.mmap) -> None:
        """Give back what `try_take_ahead` returned."""
        with self._changed:
            self._ahead -= len(buffer)
            self._keep(buffer)

    @property
    def used(self) -> int:
        """How many bytes are taken."""
        return self._sending + self._ahead

    def _fits(self, size: int) -> bool:
        return self.used + size <= self._total

    def _buffer(self, size: int) -> mmap.mmap:
        for index, buffer in enumerate(self._spare):
            if len(buffer) == size:
                return self._spare.pop(index)
        self._spare.clear()
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def _keep(self, buffer: mmap.mmap) -> None:
        self._spare.append(buffer)
        if not self.used:  # nothing is held by a store that does nothing
            self._spare.clear()
        self._changed.notify_all()
