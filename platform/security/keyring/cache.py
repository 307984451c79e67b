"""Open keys in memory: few of them, for a short time, and only while they are used; what leaves is overwritten."""

from __future__ import annotations

import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple

from security.secret import Key

SECONDS = 300.0
IDLE = 5.0
"""Seconds after which a key that nobody used is wiped."""
MOST = 256


class _Entry(NamedTuple):
    key: Key
    belongs: Hashable
    ends: float
    idle: float

    def over(self, now: float) -> bool:
        return min(self.ends, self.idle) <= now


class KeyCache:
    """At most `most` keys, each for at most `seconds`, and `idle` seconds after its last use.

    Callers get copies, so none is wiped in their hands. While there are keys a thread wipes those whose time is over.
    """

    def __init__(self, *, seconds: float = SECONDS, idle: float = IDLE, most: int = MOST) -> None:
        self._seconds, self._idle, self._most = seconds, idle, most
        self._lock = threading.Lock()
        self._entries: OrderedDict[uuid.UUID, _Entry] = OrderedDict()
        self._sweeper: threading.Thread | None = None

    def get(self, identity: uuid.UUID, belongs: Hashable = None) -> Key | None:
        """Return a copy of the key, or None where it is not there, too old, or belongs to something else."""
        with self._lock:
            entry = self._entries.get(identity)
            if entry is None or entry.belongs != belongs:
                return None
            now = time.monotonic()
            if entry.over(now):
                self._drop(identity)
                return None
            self._entries[identity] = entry._replace(idle=now + self._idle)
            self._entries.move_to_end(identity)
            return entry.key.copy()

    def put(self, identity: uuid.UUID, key: Key, belongs: Hashable = None) -> None:
        """Keep a copy of the key."""
        with self._lock:
            self._drop(identity)
            now = time.monotonic()
            self._entries[identity] = _Entry(key.copy(), belongs, now + self._seconds, now + self._idle)
            while len(self._entries) > self._most:
                self._drop(next(iter(self._entries)))
            if self._sweeper is None:
                self._sweeper = threading.Thread(target=self._sweep, name="open-keys", daemon=True)
                self._sweeper.start()

    def forget(self, identity: uuid.UUID) -> None:
        with self._lock:
            self._drop(identity)

    def clear(self) -> None:
        with self._lock:
            for identity in list(self._entries):
                self._drop(identity)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<{len(self)} keys, not shown>"

    def _sweep(self) -> None:
        """Wipe what is over until nothing is left; the next `put` begins again."""
        while True:
            time.sleep(max(self._idle / 4, 0.01))
            with self._lock:
                now = time.monotonic()
                for identity in [each for each, entry in self._entries.items() if entry.over(now)]:
                    self._drop(identity)
                if not self._entries:
                    self._sweeper = None
                    return

    def _drop(self, identity: uuid.UUID) -> None:
        if entry := self._entries.pop(identity, None):
            entry.key.wipe()
