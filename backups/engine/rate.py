"""A bound on bytes a second, shared by several threads. Imports no Django."""

from __future__ import annotations

import threading
import time


class Rate:
    """Bytes a second that several threads share, in the long run. None: as many as there are."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._free_at = time.monotonic()
        self._lock = threading.Lock()

    def set(self, rate: float | None) -> None:
        """Bound them anew, from the next bytes on."""
        with self._lock:
            self._rate = rate

    def spend(self, count: int, halt: threading.Event) -> None:
        """Wait until that many bytes may go, or until `halt` is set."""
        with self._lock:
            if self._rate is None:
                return
            now = time.monotonic()
            begin = max(self._free_at, now)
            self._free_at = begin + count / self._rate
        halt.wait(max(begin - now, 0.0))
