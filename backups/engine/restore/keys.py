"""Data keys for a restore: each asked for once, under a grant. Imports no Django."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable

from backups.engine.restore.errors import Cancelled, RestoreError
from security.errors import SecurityError
from security.streams import DataKey
from security.transport.errors import CallRefused

PATIENCE = 300.0
"""Seconds for which a Hearth that does not answer is asked again."""
_PAUSE = 2.0
_LATER = {"too-many", "unavailable"}


class OpenKeys:
    """Gives data keys by their ids, to several threads. Calling it raises `RestoreError`."""

    def __init__(self, ask: Callable[[uuid.UUID], DataKey], stop: threading.Event) -> None:
        self._ask = ask
        self._stop = stop
        self._found: dict[uuid.UUID, DataKey] = {}
        self._lock = threading.Lock()

    def __call__(self, identity: uuid.UUID) -> DataKey:
        with self._lock:
            if identity not in self._found:
                self._found[identity] = self._asked(identity)
            return self._found[identity]

    def _asked(self, identity: uuid.UUID) -> DataKey:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return self._ask(identity)
            except (SecurityError, OSError) as error:
                kind = error.type if isinstance(error, CallRefused) else ""
                again = kind in _LATER or isinstance(error, OSError)
                if not again or time.monotonic() > end:
                    raise _refused(kind, error, again=again) from None
            if self._stop.wait(_PAUSE):
                raise Cancelled


def _refused(kind: str, error: Exception, *, again: bool) -> RestoreError:
    if kind == "grant-ended":
        return RestoreError(
            "The permission to open these backups has ended. What was fetched stays; go on with a new one.",
            code="GrantEnded",
            retry=True,
        )
    text = f"A data key of these backups can't be had: {error} What was fetched stays."
    return RestoreError(text, code="KeysAway", retry=again)
