"""A store that is a folder: a disk, a network file system. One file for each object, never written again.

An object is written under a passing name, synced, and gets its own name by link(2), which refuses one that is taken.
Below the folder no symbolic link is followed: every step is taken from the open folder above it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from backups.engine.stores.base import Finding, NoSuchObject, ObjectExists, Stored, StoreError
from backups.engine.stores.names import check_name, check_prefix, is_part, misused

MARK = ".hearth-store"
"""A folder that says: this is the store's disk, and not the empty place where it should be mounted. Holds what is not
finished yet."""
PIECE = 1 << 20
STALE = 60.0
"""Seconds after which an unfinished file that nobody holds is a dead writer's."""
STALE_UNLOCKED = 86_400.0
"""The same where the file system knows no locks."""
_TRIES = 5
_MOST_KNOWN = 100_000
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class FolderStore:
    """A store in `path`. With `make` a missing or empty folder becomes a store; without, it is a disk not mounted."""

    def __init__(self, name: str, path: Path, *, make: bool = False) -> None:
        self._name = name
        self._path = path
        self._make = make
        self._durable: set[str] = set()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"FolderStore({self._name!r}, {str(self._path)!r})"

    @property
    def name(self) -> str:
        return self._name

    def put(self, name: str, pieces: Iterable[bytes | memoryview]) -> Stored:
        check_name(name)
        with self._unfinished() as (handle, mark, passing):
            digest, size = hashlib.sha256(), 0
            for piece in pieces:  # what it raises is the caller's
                view = memoryview(piece).cast("B")
                digest.update(view)
                size += len(view)
                with self._faults("written"):
                    _write(handle, view)
            with self._faults("written"):
                os.fsync(handle)
                self._link(mark, passing, name)
                modified = _time(os.fstat(handle))
        return Stored(name, size, mark="", sha256=digest.hexdigest(), modified=modified)

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        check_name(name)
        if offset < 0 or (length is not None and length < 0):
            raise misused("A part of an object begins at 0 or later, and has no negative length.")
        return self._read(name, offset, length)

    def head(self, name: str) -> Stored:
        check_name(name)
        with self._faults("read", name), self._parent(name) as (folder, leaf):
            found = os.stat(leaf, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            raise NoSuchObject(name)
        return Stored(name, found.st_size, mark="", modified=_time(found))

    def listing(self, prefix: str = "") -> Iterator[Stored]:
        """Return all objects whose names begin with `prefix`, in the order of their names.

        Those that come or go meanwhile may be in it or not.
        """
        above, _, leaf = check_prefix(prefix).rpartition("/")
        return self._walk_from(above, leaf)

    def delete(self, names: Iterable[str]) -> None:
        touched: set[str] = set()
        for name in names:
            check_name(name)
            with contextlib.suppress(NoSuchObject), self._faults("removed", name), self._parent(name) as (folder, leaf):
                os.unlink(leaf, dir_fd=folder)
                touched.add(name.rpartition("/")[0])
        with self._faults("removed"):
            for above in sorted(touched):
                self._settle(above)

    def erase(self, names: Iterable[str]) -> None:
        """Remove objects for good: a folder has no older versions."""
        self.delete(names)

    def sweep(self) -> int:
        """Remove what killed writers left, and return how many files that were. Living writers are left alone."""
        with self._faults("read"), self._root() as root, self._marked(root) as mark, os.scandir(mark) as entries:
            return sum(_sweep(mark, each.name) for each in entries)

    def check(self) -> list[Finding]:
        """Raise `StoreError` where the folder can't be written; tell what a folder can't protect from."""
        with self._unfinished() as (handle, _, _), self._faults("written"):
            _write(handle, memoryview(b"Hearth looks whether it can write here.\n"))
            os.fsync(handle)
        self.sweep()
        rights = "Whoever may write to this folder can also delete and change backups in it"
        return [
            Finding("versions", "unsupported", f"{rights}: a folder keeps no older versions. Keep a second store."),
            Finding("lifecycle", "unsupported", "A folder removes nothing by itself. Hearth removes what expired."),
            Finding("object lock", "unsupported", f"{rights}: a folder can't lock them. Keep a second store."),
            Finding("encryption at rest", "unsupported", "The disk's matter. Backups come here sealed."),
            Finding("write-once names", "on", "A name that is taken is refused."),
        ]

    @contextlib.contextmanager
    def _unfinished(self) -> Iterator[tuple[int, int, str]]:
        """Open a new file under a passing name that goes in any case: its handle, its folder's, its name."""
        with contextlib.ExitStack() as stack:
            with self._faults("written"):
                mark = stack.enter_context(self._marked(stack.enter_context(self._root())))
                passing = os.urandom(12).hex()
                handle = os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=mark)
            stack.callback(os.close, handle)
            stack.callback(_forget, mark, passing)
            with contextlib.suppress(OSError):  # a file system without locks: then its age tells
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield handle, mark, passing

    def _link(self, mark: int, passing: str, name: str) -> None:
        """Give an unfinished file its name, for good. Tried again where a `delete` took the emptied folder away."""
        for again in range(_TRIES, 0, -1):
            try:
                with self._parent(name, make=True) as (folder, leaf):
                    os.link(passing, leaf, src_dir_fd=mark, dst_dir_fd=folder, follow_symlinks=False)
                    os.fsync(folder)
                    return
            except FileExistsError:
                raise ObjectExists(name) from None
            except FileNotFoundError:
                if again == 1:
                    raise

    def _read(self, name: str, offset: int, length: int | None) -> Iterator[bytes]:
        with self._faults("read", name), self._parent(name) as (folder, leaf):
            handle = os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise NoSuchObject(name)
            while length is None or length > 0:
                with self._faults("read"):
                    data = os.pread(handle, PIECE if length is None else min(PIECE, length), offset)
                if not data:
                    return
                offset += len(data)
                length = None if length is None else length - len(data)
                yield data
        finally:
            os.close(handle)

    def _walk_from(self, above: str, leaf: str) -> Iterator[Stored]:
        with contextlib.ExitStack() as stack:
            with self._faults("read"):
                folder = stack.enter_context(self._root())
                try:
                    for part in above.split("/") if above else ():
                        folder = stack.enter_context(_opened(part, folder))
                except (FileNotFoundError, NotADirectoryError):
                    return
            yield from self._walk(folder, f"{above}/" if above else "", leaf)

    def _walk(self, folder: int, above: str, leaf: str = "") -> Iterator[Stored]:
        with self._faults("read"), os.scandir(folder) as entries:
            wanted = (each for each in entries if each.name.startswith(leaf) and is_part(each.name))
            # A folder's slash counts in the order of whole names: `a-b` stands before `a/b`.
            found = sorted(f"{each.name}/" if each.is_dir(follow_symlinks=False) else each.name for each in wanted)
        for part in found:
            if part.endswith("/"):
                with contextlib.ExitStack() as stack:
                    with self._faults("read"):
                        try:
                            below = stack.enter_context(_opened(part[:-1], folder))
                        except (FileNotFoundError, NotADirectoryError):
                            continue
                    yield from self._walk(below, above + part)
                continue
            with self._faults("read"):
                try:
                    seen = os.stat(part, dir_fd=folder, follow_symlinks=False)
                except FileNotFoundError:
                    continue
            if stat.S_ISREG(seen.st_mode):
                yield Stored(above + part, seen.st_size, mark="", modified=_time(seen))

    @contextlib.contextmanager
    def _root(self) -> Iterator[int]:
        if self._make and not self._path.is_dir():
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if self._make:
                _mkdir(MARK, handle)
            # Without it this is another disk: an empty place to mount at lists nothing, which would look like loss.
            os.stat(MARK, dir_fd=handle, follow_symlinks=False)
            yield handle
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def _marked(self, root: int) -> Iterator[int]:
        with _opened(MARK, root) as mark:
            yield mark

    @contextlib.contextmanager
    def _parent(self, name: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """Open the folder of an object, made durably where need be; with it the last part of its name."""
        *parts, leaf = name.split("/")
        with contextlib.ExitStack() as stack:
            folder, above = stack.enter_context(self._root()), ""
            for part in parts:
                above += f"{part}/"
                if make:
                    self._make_folder(part, folder, above)
                folder = stack.enter_context(_opened(part, folder))
            yield folder, leaf

    def _make_folder(self, part: str, folder: int, above: str) -> None:
        """Make a folder durable before anything in it is, also one that another thread made a moment ago."""
        made = _mkdir(part, folder)
        with self._lock:
            if above in self._durable and not made:
                return
        os.fsync(folder)
        with self._lock:
            if len(self._durable) >= _MOST_KNOWN:
                self._durable.clear()
            self._durable.add(above)

    def _settle(self, above: str) -> None:
        """Make removals in a folder durable, and remove it and those above it that they emptied."""
        while above:
            upper, _, part = above.rpartition("/")
            try:
                with self._parent(above) as (folder, leaf):
                    with _opened(leaf, folder) as own:
                        os.fsync(own)
                    with self._lock:
                        self._durable.discard(f"{above}/")
                    os.rmdir(part, dir_fd=folder)
                    os.fsync(folder)
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                    return
                raise
            above = upper
        with self._root() as root:
            os.fsync(root)

    @contextlib.contextmanager
    def _faults(self, what: str, name: str = "") -> Iterator[None]:
        """Tell a person what an error of the system means. With `name` something missing is that object."""
        try:
            yield
        except OSError as error:
            if name and error.errno in {errno.ENOENT, errno.ENOTDIR} and self._is_there():
                raise NoSuchObject(name) from None
            raise self._fault(what, error) from None

    def _is_there(self) -> bool:
        with contextlib.suppress(OSError):
            return (self._path / MARK).is_dir()
        return False

    def _fault(self, what: str, error: OSError) -> StoreError:
        known = {
            errno.ENOSPC: ("StoreFull", "its disk is full. Free some space, or give it a larger disk"),
            errno.EDQUOT: ("StoreFull", "its quota is used up. Raise it, or free some space"),
            errno.EFBIG: ("StoreFull", "its file system takes no file of that size. Use another one"),
            errno.EROFS: ("StoreDenied", "its disk is read-only. Mount it for writing"),
            errno.EACCES: ("StoreDenied", "Hearth's user may not use it. Correct its permissions"),
            errno.EPERM: ("StoreDenied", "its file system does not allow it: hard links are needed. Use another one"),
            errno.EOPNOTSUPP: ("StoreDenied", "its file system has no hard links. Use another one"),
            errno.ENOENT: ("StoreMissing", "it is not there, or is no store yet. Is its disk mounted?"),
            errno.ELOOP: ("StoreMisused", "a symbolic link lies in it, and none is followed. Remove the link"),
            errno.ENOTDIR: ("StoreMisused", "a file or a link lies where a folder should be. Look at its folders"),
            errno.EISDIR: ("StoreMisused", "a folder lies where an object should be. Look at its folders"),
        }
        code, reason = known.get(error.errno or 0, ("StoreAway", f"{error.strerror}. Look at its disk"))
        message = f"The store {self._name} ({self._path}) could not be {what}: {reason}."
        return StoreError(message, code=code, retry=code == "StoreAway")


@contextlib.contextmanager
def _opened(part: str, above: int) -> Iterator[int]:
    handle = os.open(part, _FOLDER, dir_fd=above)
    try:
        yield handle
    finally:
        os.close(handle)


def _mkdir(part: str, above: int) -> bool:
    try:
        os.mkdir(part, 0o700, dir_fd=above)
    except FileExistsError:
        return False
    return True


def _write(handle: int, data: memoryview) -> None:
    while data:
        data = data[os.write(handle, data) :]  # a disk that is nearly full takes a part


def _forget(mark: int, passing: str) -> None:
    with contextlib.suppress(OSError):  # a sweep may have been quicker; what can't be removed is swept later
        os.unlink(passing, dir_fd=mark)


def _sweep(mark: int, passing: str) -> bool:
    """Remove an unfinished file whose writer is dead; return whether it was."""
    try:
        handle = os.open(passing, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=mark)
    except OSError:
        return False
    try:
        age = time.time() - os.fstat(handle).st_mtime
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            age -= STALE_UNLOCKED
        if age < STALE:
            return False
        os.unlink(passing, dir_fd=mark)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def _time(found: os.stat_result) -> datetime:
    return datetime.fromtimestamp(found.st_mtime, UTC)
