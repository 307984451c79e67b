"""Where key bundles lie, and the place that is a folder. Imports no Django."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from security.durable import sync_folder
from security.errors import SecurityError
from security.streams.pieces import write_all

SUFFIX = ".hkb"
UNFINISHED = ".unfinished"
STALE = 86_400.0
"""Seconds after which a file that was never finished is a dead writer's."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,110}\.hkb")
MOST_HANGING = 4
T = TypeVar("T")


class PlaceError(SecurityError):
    """A place did not do what it was asked. The text says why and what to do."""


class Place(Protocol):
    """A store of key bundles: a folder, a bucket. Its calls may block, and raise `PlaceError` or `OSError`."""

    @property
    def name(self) -> str:
        """Stable, such as the region's: bundles are bound to it, and don't open as another place's."""

    def put(self, name: str, data: bytes) -> None:
        """Keep `data` under a new name. After it returns the bytes survive a loss of power; before, nothing is seen."""

    def get(self, name: str) -> bytes:
        """Return what lies under a name."""

    def list(self) -> Sequence[str]:
        """Return the names of all bundles that are whole."""

    def remove(self, name: str) -> None:
        """Take a bundle away; one that is gone already is no fault."""


class Errand(Generic[T]):
    """A call of a place in a thread of its own, because a disk or a network that hangs can't be interrupted.

    A place with several calls that hang gets no more of them until one has ended, so threads don't pile up.
    """

    _hanging: Counter[str] = Counter()
    _lock = threading.Lock()

    def __init__(self, place: Place, do: Callable[[], T]) -> None:
        self._place, self._do = place, do
        self._future: Future[T] = Future()
        if self._hanging[place.name] >= MOST_HANGING:
            self._future.set_exception(PlaceError(f"The place {place.name} still hangs in earlier calls."))
            return
        threading.Thread(target=self._run, name=f"place-{place.name}", daemon=True).start()

    def result(self, seconds: float) -> T:
        """Return what the call returned, or raise what it raised; `PlaceError` after that many seconds."""
        try:
            return self._future.result(max(seconds, 0.0))
        except TimeoutError:
            if self._future.done():  # at the last moment, or the call itself raised it
                return self._future.result()
        with self._lock:
            self._hanging[self._place.name] += 1
        self._future.add_done_callback(self._ended)
        raise PlaceError(f"The place {self._place.name} did not answer in time. Look at its disk or its network")

    def _run(self) -> None:
        try:
            self._future.set_result(self._do())
        except BaseException as error:  # handed on to whoever waits
            self._future.set_exception(error)

    def _ended(self, _: Future[T]) -> None:
        with self._lock:
            self._hanging[self._place.name] -= 1


@dataclass(frozen=True)
class FolderPlace:
    """A folder. It must be there, unless `make` says that it is Hearth's own: a missing one is a disk not mounted."""

    name: str
    path: Path
    make: bool = False

    def put(self, name: str, data: bytes) -> None:
        target = self._path(name)
        unfinished = target.with_name(f".{name}.{os.urandom(6).hex()}{UNFINISHED}")
        try:
            if self.make:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                _write(unfinished, data)
                unfinished.replace(target)
            except BaseException:
                with contextlib.suppress(OSError):
                    unfinished.unlink()
                raise
            sync_folder(self.path)
        except OSError as error:
            raise self._fault("written", error) from None

    def get(self, name: str) -> bytes:
        try:
            return self._path(name).read_bytes()
        except OSError as error:
            raise self._fault("read", error) from None

    def list(self) -> Sequence[str]:
        """Return the names of all bundles; what a killed writer left is removed when it is a day old."""
        if self.make and not self.path.exists():
            return []
        try:
            found = sorted(entry.name for entry in os.scandir(self.path))
        except OSError as error:
            raise self._fault("read", error) from None
        for name in found:
            if name.startswith(".") and name.endswith(UNFINISHED):
                self._sweep(self.path / name)
        return [name for name in found if NAME.fullmatch(name)]

    def remove(self, name: str) -> None:
        try:
            self._path(name).unlink(missing_ok=True)
            sync_folder(self.path)
        except OSError as error:
            raise self._fault("removed", error) from None

    def _path(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise PlaceError(f"{name!r} is no name of a key bundle. Nothing was touched.")
        return self.path / name

    def _sweep(self, path: Path) -> None:
        with contextlib.suppress(OSError):  # a living writer may rename it at this moment
            if path.stat().st_mtime < time.time() - STALE:
                path.unlink()

    def _fault(self, what: str, error: OSError) -> PlaceError:
        reasons = {
            errno.ENOSPC: "its disk is full. Free some space",
            errno.EDQUOT: "its quota is used up. Free some space",
            errno.EROFS: "its disk is read-only. Mount it for writing",
            errno.ENOENT: "it is not there. Is its disk mounted?",
            errno.EACCES: "Hearth's user may not use it. Correct its permissions",
        }
        reason = reasons.get(error.errno or 0, f"{error.strerror}. Look at its disk")
        return PlaceError(f"The place {self.name} ({self.path}) could not be {what}: {reason}")


def _write(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb", buffering=0) as file:
        write_all(file, memoryview(data))  # a disk that is nearly full takes a part
        os.fsync(handle)
