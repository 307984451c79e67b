"""How long something takes, and how much memory it and all of its children have meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psutil

EVERY = 0.1
MB = 10**6
APART = {"postgres"}
"""The database has its memory whoever asks it for a copy."""


class Watch:
    """Looks at a process tree ten times a second, inside a `with` block. `peak_mb` is its largest resident sum."""

    def __init__(self, root: Callable[[], int]) -> None:
        self._root = root
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.peak_mb = 0.0
        self.seconds = 0.0

    def __enter__(self) -> Watch:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(EVERY):
            self.peak_mb = max(self.peak_mb, _resident(self._root()) / MB)


def _resident(root: int) -> int:
    try:
        top = psutil.Process(root)
        some = [top, *top.children(recursive=True)]
    except psutil.Error:
        return 0
    found = 0
    for each in some:
        try:
            if each.name() not in APART:
                found += each.memory_info().rss
        except psutil.Error:
            continue
    return found
