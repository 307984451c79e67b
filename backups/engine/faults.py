"""What is wrong now, by the part of the engine that met it; and the loops that go on in spite of it. No Django."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime

from backups.engine.hearth import Fault
from backups.engine.progress import Progress

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
UNKNOWN = "EngineFault"
LONGEST_TEXT = 1000


class Faults:
    """One fault for each part at most. Said aloud when it begins, changes its name, or ends."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._found: dict[str, Fault] = {}
        self._lock = threading.Lock()

    def set(self, part: str, code: str, text: str) -> bool:
        """Something is wrong with `part`. True if that is news."""
        with self._lock:
            before = self._found.get(part)
            same = before is not None and before.code == code
            since = before.since if before is not None and same else datetime.now(UTC)
            self._found[part] = Fault(code, text[:LONGEST_TEXT], since)
        if not same:
            self._progress.say("trouble", part=part, code=code, text=text[:LONGEST_TEXT])
        return not same

    def met(self, part: str, error: Exception) -> None:
        """An error ended what `part` was doing."""
        code = getattr(error, "code", None)
        if not isinstance(code, str):
            code = "DiskFault" if isinstance(error, OSError) else UNKNOWN
        if self.set(part, code, str(error) or type(error).__name__) and code == UNKNOWN:
            traceback.print_exception(error, file=sys.stderr)

    def clear(self, part: str) -> None:
        """`part` works."""
        with self._lock:
            before = self._found.pop(part, None)
        if before is not None:
            self._progress.say("well-again", part=part, code=before.code)

    @property
    def oldest(self) -> Fault | None:
        """The one that began first."""
        with self._lock:
            return min(self._found.values(), key=lambda fault: fault.since, default=None)


class Loop:
    """A thread that does `turn` again and again; `turn` returns the seconds to wait. A failed one is tried again."""

    def __init__(
        self,
        name: str,
        turn: Callable[[], float],
        stop: threading.Event,
        faults: Faults,
        *,
        longest: float = LONGEST_WAIT,
    ) -> None:
        self.name = name
        self.wake = threading.Event()
        self._turn = turn
        self._stop = stop
        self._faults = faults
        self._longest = longest
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Wait for its end after `stop` is set; True if it has ended."""
        self.wake.set()
        if self._thread.is_alive():
            self._thread.join(max(seconds, 0.0))
        return not self._thread.is_alive()

    def _run(self) -> None:
        wait = FIRST_WAIT
        while not self._stop.is_set():
            try:
                pause = self._turn()
                self._faults.clear(self.name)
                wait = FIRST_WAIT
            except Exception as error:  # whatever it is, backups must go on, and somebody must hear of it
                pause, wait = wait, min(wait * 2, self._longest)
                if not self._stop.is_set():
                    self._faults.met(self.name, error)
            self._pause(pause)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stop.is_set() and (left := end - time.monotonic()) > 0:
            if self.wake.wait(left):
                self.wake.clear()
                return
