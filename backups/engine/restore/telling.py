"""How far a restore is, told about once a second: bytes and estimated seconds. Imports no Django."""

from __future__ import annotations

import threading
import time
from typing import Any

from backups.engine.progress import Progress

EVERY = 1.0


class Telling:
    """Counts bytes by part (`base`, `wal`, `media`) as stored. Safe for several threads."""

    def __init__(self, progress: Progress, totals: dict[str, int]) -> None:
        self.progress = progress
        self.totals = totals
        self._done = dict.fromkeys(totals, 0)
        self._began: dict[str, float] = {}
        self._step = ""
        self._said = 0.0
        self._lock = threading.Lock()

    def step(self, name: str, **values: Any) -> None:
        """A step of the database's way begins: `base`, `replay`, `settle`, `media`, `finish`."""
        with self._lock:
            self._step, self._said = name, time.monotonic()
            values |= self._values()
        self.progress.say("restore", step=name, **values)

    def add(self, part: str, size: int) -> None:
        """So many bytes more."""
        now = time.monotonic()
        with self._lock:
            self._began.setdefault(part, now)
            self._done[part] = min(self._done[part] + size, self.totals[part])
            if now - self._said < EVERY:
                return
            self._said = now
            step, values = self._step, self._values()
        self.progress.say("restore", step=step, **values)

    def _values(self) -> dict[str, Any]:
        values: dict[str, Any] = {"done_bytes": sum(self._done.values()), "total_bytes": sum(self.totals.values())}
        left = self._seconds_left()
        return values if left is None else values | {"seconds_left": round(left, 1)}

    def _seconds_left(self) -> float | None:
        """Return what is left at the speeds so far; None where there is none yet."""
        now = time.monotonic()
        done = sum(self._done.values())
        began = min(self._began.values(), default=now)
        if now - began < 1.0 or not done:
            return None
        return (sum(self.totals.values()) - done) * (now - began) / done
