"""The folder in which a restore keeps what it needs meanwhile: whose turn it is, how far it is. Imports no Django.

A call that was killed is gone on with: what its steps had finished counts if the request asks for the same and the
machine was not started again since (then what was written may never have reached the disk).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from backups.engine.restore.disk import new_sockets
from backups.engine.restore.errors import RestoreError
from backups.engine.restore.request import Request
from security.durable import replace_file

FOUND = "lost+found"
"""A file system's own folder, where media are the whole of a volume."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Reached(msgspec.Struct, kw_only=True):
    """Where replay stopped."""

    end: int = 0
    """The LSN at which the restored history leaves the old one."""
    last: str = ""
    """When the last transaction was committed that is in it, as PostgreSQL says; empty where it did not say."""
    stopped: bool = False
    """Whether there was a later commit, that was left out."""


class State(msgspec.Struct, kw_only=True):
    """How far a restore is."""

    wanted: str
    """A hash of what was asked for."""
    boot: str
    point: str = ""
    data: str = ""
    """Of the database: empty, `fetching`, `fetched`, `replayed`, `settled`."""
    media: bool = False
    """Whether the first file was written."""
    sockets: str = ""
    """The private PostgreSQL's folder, under /tmp."""
    sequences: dict[str, int] = {}
    """How far they were before they were moved, so that a second call moves them no further."""
    everything: bool = False
    """There is no commit after the wanted moment: all that there is is replayed."""
    reached: Reached = msgspec.field(default_factory=Reached)
    moment: datetime | None = None
    """Of what was restored. Since then others may have seen what the database knows nothing of."""
    checked: bool = False
    """Whether `pg_amcheck` found nothing wrong."""
    done: bool = False
    result: dict[str, Any] = {}
    """What was told when it was done."""


class Folder:
    """The work folder of a restore. Use it as a context manager: inside, it is nobody else's."""

    def __init__(self, request: Request) -> None:
        self.path = Path(request.work)
        self.request = request
        self.state = State(wanted=_wanted(request), boot=_boot())
        self._lock = -1
        self._saving = threading.Lock()

    def __enter__(self) -> Folder:
        """Raises `RestoreError`: `Busy`, or `NotEmpty` where the target holds something that is not ours."""
        try:
            self.path.mkdir(mode=0o711, parents=True, exist_ok=True)
            self.path.chmod(0o711)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise RestoreError(
                f"The folder {self.path} can't be used ({error.strerror}). Nothing was restored.", code="DiskFault"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise RestoreError(
                f"Another restore into {self.request.data} is going on. It was left alone. Wait until it ends.",
                code="Busy",
                retry=True,
            ) from None
        try:
            self._resume()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    def save(self) -> None:
        """Write the state, whole or not at all."""
        with self._saving:
            replace_file(self.path / "state.json", msgspec.json.encode(self.state))

    @contextlib.contextmanager
    def sockets(self) -> Iterator[Path]:
        """Give a folder for a socket of a private PostgreSQL. One that a killed call left is removed."""
        if self.state.sockets:
            shutil.rmtree(self.state.sockets, ignore_errors=True)
        path = new_sockets(self.request.tools)
        self.state.sockets = str(path)
        self.save()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def wipe(self, path: Path) -> None:
        """Remove what an earlier call left."""
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path)

    def clean(self) -> None:
        """Remove what is of no use once the restore is done; the state stays, to tell that it is."""
        if self.state.sockets:
            shutil.rmtree(self.state.sockets, ignore_errors=True)
            self.state.sockets = ""
        for each in self.path.iterdir():
            if each.name not in {"lock", "state.json"}:
                self.wipe(each)

    def _resume(self) -> None:
        before = None
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            before = msgspec.json.decode((self.path / "state.json").read_bytes(), type=State)
        # What was done was synced before it was said to be done.
        valid = before is not None and (before.done or before.boot == self.state.boot)
        if before is not None and valid and before.wanted == self.state.wanted:
            self.state = before
            return
        data, media = Path(self.request.data), Path(self.request.media or os.devnull)
        if before is None:
            for place in (data, media):
                if place.is_symlink() or (place.is_dir() and any(each.name != FOUND for each in place.iterdir())):
                    raise RestoreError(
                        f"There is something in {place} already. A restore goes into an empty place only, so nothing "
                        "was touched.",
                        code="NotEmpty",
                    )
        elif not before.done:
            self._forget(before)
        else:
            raise RestoreError(
                f"In {data} lies a finished restore of something else. It was left alone. Restore into another place.",
                code="NotEmpty",
            )
        self.save()

    def _forget(self, before: State) -> None:
        """Remove what a call for something else left, or one before the machine was started again."""
        if before.data:
            self.wipe(Path(self.request.data))
        if before.media and self.request.media:
            for each in Path(self.request.media).iterdir():
                if each.name != FOUND:
                    self.wipe(each)
        self.state.sockets = before.sockets
        self.clean()


def _wanted(request: Request) -> str:
    """Return what tells one request from another: not the grant, nor what is applied afterwards, nor where all of it
    lies together."""
    places = [os.path.relpath(place, request.work) if place else "" for place in (request.data, request.media)]
    parts = (request.organisation, request.server, request.to, request.point, *places)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _boot() -> str:
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""
