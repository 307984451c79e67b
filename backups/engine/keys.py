"""Data keys for the engine's work, also while Hearth is away. Imports no Django."""

from __future__ import annotations

import threading
import time

from backups.engine.objects import KeyService, Stretch
from backups.engine.progress import Progress
from security.errors import SecurityError
from security.streams import DataKey

AGAIN = 60.0
"""Seconds for which Hearth is not asked again after it did not answer."""


class HearthAwayError(Exception):
    """Hearth does not answer, or refuses. The text is for a person."""

    code = "HearthAway"


class KeysAwayError(HearthAwayError):
    """Hearth gives no key now."""


class Keys:
    """Fresh keys by purpose. While Hearth is away the last stretch's key serves on: it is published long since, and
    seconds of WAL in a store are worth more than a key of their own (decision 21). Safe for several threads.
    """

    def __init__(self, service: KeyService, every: float, progress: Progress) -> None:
        self.every = every
        # Apart, so that a call for a base backup's key never holds up the write-ahead log.
        self._stretches, self._pieces = Stretch(service), Stretch(service)
        self._progress = progress
        self._last: dict[str, DataKey] = {}
        self._away_until = 0.0
        self._lock = threading.Lock()

    def once(self, purpose: str, name: str) -> DataKey:
        """Return a key for one piece of work. Raises `KeysAwayError`."""
        return _asked(self._pieces, purpose, name)

    def stretch(self, purpose: str, of: str) -> DataKey:
        """Return the key of the present stretch of time. Raises `KeysAwayError` when there was none yet."""
        with self._lock:
            last = self._last.get(purpose)
            if last is not None and time.monotonic() < self._away_until:
                return last
            try:
                found = _asked(self._stretches, purpose, f"{of}/{int(time.monotonic() // self.every)}")
            except KeysAwayError as error:
                if last is None:
                    raise
                self._away_until = time.monotonic() + AGAIN
                self._progress.say("key-kept", text=str(error))
                return last
            self._last[purpose] = found
            return found


def _asked(stretch: Stretch, purpose: str, name: str) -> DataKey:
    try:
        return stretch.key(purpose, name)
    except (SecurityError, OSError) as error:
        raise KeysAwayError(f"Hearth gives no data key now, so this waits: {error}") from None
