"""Open keys in memory, for a short time and few of them; what leaves is overwritten."""

from __future__ import annotations

import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple

from security.secret import Key

SECONDS = 300.0
MOST = 256


class _Entry(NamedTuple):
    key: Key
    belongs: Hashable
    ends: float


class KeyCache:
    """At most `most` keys, each for at most `seconds`. Callers get copies, so none is wiped in their hands."""

    def __init__(self, *, seconds: float = SECONDS, most: int = MOST) -> None:
        self._seconds, self._most = seconds, most
        self._lock = threading.Lock()
        self._entries: OrderedDict[uuid.UUID, _Entry] = OrderedDict()

    def get(self, identity: uuid.UUID, belongs: Hashable = None) -> Key | None:
        """Return a copy of the key, or None where it is not there, too old, or belongs to something else."""
        with self._lock:
            entry = self._entries.get(identity)
            if entry is None or entry.belongs != belongs:
                return None
            if entry.ends <= time.monotonic():
                self._drop(identity)
                return None
            self._entries.move_to_end(identity)
            return entry.key.copy()

    def put(self, identity: uuid.UUID, key: Key, belongs: Hashable = None) -> None:
        """Keep a copy of the key."""
        with self._lock:
            self._drop(identity)
            self._entries[identity] = _Entry(key.copy(), belongs, time.monotonic() + self._seconds)
            while len(self._entries) > self._most:
                self._drop(next(iter(self._entries)))

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

    def _drop(self, identity: uuid.UUID) -> None:
        if entry := self._entries.pop(identity, None):
            entry.key.wipe()
