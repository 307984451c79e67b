"""How long something takes, and how much memory it and all of its children have meanwhile."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

EVERY = 0.1
MB = 10**6
APART = {"postgres"}
"""The database has its memory whoever asks it for a copy."""
_PSS = re.compile(r"^Pss:\s+(\d+)", re.MULTILINE)


class Watch:
    """Looks at a process tree ten times a second, inside a `with` block.

    `peak_mb` is the most that all of it had in memory; pages that several processes share count once (PSS of proc(5)).
    """

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
        names = {each.pid: each.name() for each in (top, *top.children(recursive=True))}
    except psutil.Error:
        return 0
    return sum(_share(pid) for pid, name in names.items() if name not in APART)


def _share(pid: int) -> int:
    try:
        found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
    except OSError:
        return 0  # it has ended
    return int(found[1]) * 1024 if found else 0
