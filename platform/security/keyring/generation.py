"""When keys end, every process that has them open learns it: at its next request or task, else within seconds.

The generation is one row, replaced in the transaction that erases, destroys or compromises a key. A key in memory is
tagged with the generation that was read before its row was, and is used only while that is still the present one.
Asking is one read of one row, done where a request or a task first needs a key, and every few seconds in between
(docs/decisions/0008). What nobody uses is wiped from memory by `cache` within as many seconds.
"""

from __future__ import annotations

import threading
import time
import uuid
from typing import Any

from security.models import Generation

EVERY = 5.0
"""Seconds for which one answer is believed inside a request or a task."""
NONE = uuid.UUID(int=0)
_ONLY = 1


class _Known:
    """What this process knows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = -EVERY
        self._value = NONE

    def get(self) -> uuid.UUID:
        with self._lock:
            if time.monotonic() - self._asked < EVERY:
                return self._value
        # Asked outside of the lock, and dated before it was asked: a slow database makes nobody believe it longer.
        now = time.monotonic()
        value = Generation.objects.filter(pk=_ONLY).values_list("value", flat=True).first() or NONE
        with self._lock:
            self._value, self._asked = value, now
        return value

    def doubt(self) -> None:
        with self._lock:
            self._asked = -EVERY


_known = _Known()


def current() -> uuid.UUID:
    """Return the keyring's generation, as it was at the latest `EVERY` seconds ago. Ask before reading a key's row."""
    return _known.get()


def ask_again(**_: Any) -> None:
    """Have the next `current` ask the database. Connected to the beginning of every request and every task."""
    _known.doubt()


def replace() -> None:
    """Begin a new generation, with the caller's transaction: no process uses a key any more that it opened before."""
    Generation.objects.update_or_create(pk=_ONLY, defaults={"value": uuid.uuid4()})
    _known.doubt()
