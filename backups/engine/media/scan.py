"""Which media files there are on disk, and which may have changed since they were looked at last. Imports no Django.

Synapse writes a file once and never again, into a folder of two letters and two more. A folder whose time of change is
the same has the same names; so a look asks for the times of folders, and only where one differs for what is in it.
Each run also looks closely at one group in `ROUNDS`, and always at files that are young: they may still be growing.

The engine may be root and the folder is the server's: no link is followed, at any step of a path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from backups.engine.media.errors import MediaError

KEPT = ("local_content", "local_thumbnails")
"""What of a media store only this server has. The rest it fetches again."""
ROUNDS = 24
"""Runs in which every group is looked at closely: two hours."""
SETTLED = 10.0
"""Seconds after which the time of a change tells it from later ones."""
YOUNG = 900.0
"""Seconds for which a file may still be growing."""
DEPTH = 6
MOST_IN_GROUP = 200_000
MOST_GROUPS = 20_000
PIECE = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ESTALE}


class Seen(NamedTuple):
    """What tells one version of a file from another. Bytes; nanoseconds of its last change; a bucket's ETag."""

    size: int
    mtime: int
    mark: str = ""


class Group(msgspec.Struct, array_like=True):
    """What is known of the folders below one pair of letters, such as `local_content/ab`. Names begin below it."""

    folders: dict[str, int] = {}
    """Their times of change; -1 where it can't tell yet."""
    young: dict[str, tuple[int, int]] = {}
    """Size and time of files that may still be growing."""


class Look(NamedTuple):
    """All files of one group, by their paths below the media store."""

    name: str
    files: dict[str, Seen]
    group: Group
    left_out: int = 0
    """Links, pipes, names that are no text: nothing that Synapse makes."""


class Opened(Protocol):
    """A file that is being read."""

    seen: Seen
    """As it was when it was opened. No more than `seen.size` bytes are given."""

    def pieces(self) -> Iterator[bytes]:
        """Yield the contents in pieces of 1 MiB at most."""

    def changed(self) -> bool:
        """Return whether it was written to since it was opened."""


class Source(Protocol):
    """Where media files are."""

    def scan(self, known: Callable[[str], Group | None], turn: int) -> Iterator[Look | str]:
        """Yield every group in order: its name where nothing changed, else all that is in it.

        `turn` counts runs; negative: look closely at all groups.
        """

    def open(self, path: str) -> contextlib.AbstractContextManager[Opened]:
        """Open a file. Raises `FileNotFoundError` when it is gone, or is no plain file any more."""


class DiskSource:
    """Synapse's media store in a folder (`media_store_path`)."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def scan(self, known: Callable[[str], Group | None], turn: int) -> Iterator[Look | str]:
        with contextlib.ExitStack() as stack:
            try:
                root = stack.enter_context(_opened(str(self._root), None))
                for top in KEPT:
                    yield from self._scan_top(root, top, known, turn)
            except OSError as error:
                raise self._fault(error) from None

    def _scan_top(self, root: int, top: str, known: Callable[[str], Group | None], turn: int) -> Iterator[Look | str]:
        try:
            with _opened(top, root) as handle:
                with os.scandir(handle) as entries:
                    names = sorted(each.name for each in entries if _is_text(each.name))
                if len(names) > MOST_GROUPS:
                    raise MediaError(f"{self._root}/{top} has {len(names)} folders; Synapse makes at most 2,704.")
                for name in names:
                    if (found := _look_at(handle, name, f"{top}/{name}", known, turn)) is not None:
                        yield found
        except OSError as error:
            if error.errno not in _GONE:
                raise

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[Opened]:
        *folders, leaf = path.split("/")
        handle = -1
        try:
            above = os.open(self._root, _FOLDER & ~os.O_NOFOLLOW)
            try:
                for each in folders:
                    below = os.open(each, _FOLDER, dir_fd=above)
                    os.close(above)
                    above = below
                handle = os.open(leaf, _FILE, dir_fd=above)
            finally:
                os.close(above)
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise FileNotFoundError(errno.ENOENT, "no plain file", path)
            yield _File(handle, found)
        except OSError as error:
            if error.errno in _GONE:
                raise FileNotFoundError(errno.ENOENT, "it is gone", path) from None
            raise
        finally:
            if handle >= 0:
                os.close(handle)

    def _fault(self, error: OSError) -> MediaError:
        return MediaError(
            f"The media folder {self._root} can't be read: {error.strerror}. New media are not backed up until "
            "it can; what is stored stays. Is its volume mounted, and may Hearth's agent read it?"
        )


class _File:
    def __init__(self, handle: int, found: os.stat_result) -> None:
        self._handle = handle
        self.seen = _seen(found)

    def pieces(self) -> Iterator[bytes]:
        left = self.seen.size
        while left > 0 and (data := os.read(self._handle, min(PIECE, left))):
            left -= len(data)
            yield data

    def changed(self) -> bool:
        return _seen(os.fstat(self._handle)) != self.seen


def _look_at(above: int, leaf: str, name: str, known: Callable[[str], Group | None], turn: int) -> Look | str | None:
    """Return the name of a group that has not changed, all of it when it has, None when it is gone or no folder."""
    try:
        with _opened(leaf, above) as handle:
            close = turn < 0 or zlib.crc32(name.encode()) % ROUNDS == turn % ROUNDS
            found = None if close else known(name)
            if found is not None and _is_same(handle, found):
                return name
            return _Closely(name).look(handle)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise


def _is_same(handle: int, found: Group) -> bool:
    look = os.stat
    try:
        for name, mtime in found.folders.items():
            if look(name or ".", dir_fd=handle, follow_symlinks=False).st_mtime_ns != mtime:
                return False
        for name, before in found.young.items():
            now = look(name, dir_fd=handle, follow_symlinks=False)
            if (now.st_size, now.st_mtime_ns) != before:
                return False
    except OSError:
        return False
    # What was young when it was written down and is no more need not be looked at for ever.
    return not found.young or all(_is_young(mtime, time.time()) for _, mtime in found.young.values())


class _Closely:
    """One look at everything in a group."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._now = time.time()
        self._files: dict[str, Seen] = {}
        self._group = Group(folders={}, young={})
        self._left_out = 0

    def look(self, handle: int) -> Look:
        self._folder(handle, "", DEPTH)
        return Look(self._name, self._files, self._group, self._left_out)

    def _folder(self, handle: int, below: str, depth: int) -> None:
        # Before its names are read: a change in between makes the time differ at the next look.
        mtime = os.fstat(handle).st_mtime_ns
        self._group.folders[below.rstrip("/")] = mtime if mtime < (self._now - SETTLED) * 1e9 else -1
        with os.scandir(handle) as entries:
            for entry in entries:
                if not _is_text(entry.name) or len(self._files) >= MOST_IN_GROUP:
                    self._left_out += 1
                    continue
                try:
                    self._entry(entry, handle, below, depth)
                except OSError as error:
                    if error.errno not in _GONE:
                        raise

    def _entry(self, entry: os.DirEntry[str], handle: int, below: str, depth: int) -> None:
        if entry.is_file(follow_symlinks=False):
            self._file(below + entry.name, _seen(entry.stat(follow_symlinks=False)))
        elif entry.is_dir(follow_symlinks=False) and depth > 1:
            with _opened(entry.name, handle) as inner:
                self._folder(inner, f"{below}{entry.name}/", depth - 1)
        else:
            self._left_out += 1

    def _file(self, name: str, seen: Seen) -> None:
        self._files[f"{self._name}/{name}"] = seen
        if _is_young(seen.mtime, self._now):
            self._group.young[name] = (seen.size, seen.mtime)


@contextlib.contextmanager
def _opened(path: str, above: int | None) -> Iterator[int]:
    handle = os.open(path, _FOLDER if above is not None else _FOLDER & ~os.O_NOFOLLOW, dir_fd=above)
    try:
        yield handle
    finally:
        os.close(handle)


def _is_young(mtime: int, now: float) -> bool:
    return mtime > (now - YOUNG) * 1e9


def _is_text(name: str) -> bool:
    return name.isascii() or not any("\ud800" <= each <= "\udfff" for each in name)


def _seen(found: os.stat_result) -> Seen:
    return Seen(found.st_size, found.st_mtime_ns)
