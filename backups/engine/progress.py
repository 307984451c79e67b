"""What the engine tells about its work: one JSON object on each line of its standard output. Imports no Django."""

from __future__ import annotations

import sys
import threading
from datetime import UTC, datetime
from typing import IO, Any

import msgspec


class Progress:
    """Writes `{"at", "event", ...}` lines. Safe for several threads; nobody who does not listen can hold it up."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._lock = threading.Lock()

    def say(self, event: str, **values: Any) -> None:
        """Tell one event, such as `point-stored`; `at` is this machine's time."""
        line = msgspec.json.encode({"at": datetime.now(UTC), "event": event, **values}).decode()
        with self._lock:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                return  # a closed pipe, a full disk: backups go on
