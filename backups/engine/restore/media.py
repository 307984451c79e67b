"""Media files from the store to the disk: each object read once, several at once. Imports no Django.

A file gets its name when all of it was read and compared with its keyed hash. One that has its name is not fetched
again by a second call: its time is the one of the index, which nothing but this gives it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path, PurePosixPath

from backups.engine.manifest import Ref
from backups.engine.media import unpack
from backups.engine.media.errors import MediaError
from backups.engine.media.index import File
from backups.engine.media.packs import keyed
from backups.engine.media.scan import KEPT
from backups.engine.media.unpack import Opens
from backups.engine.objects import Vault
from backups.engine.restore.disk import create, write_all
from backups.engine.restore.errors import Cancelled
from backups.engine.restore.telling import Telling
from backups.engine.restore.writeback import Writeback
from backups.engine.stores.base import StoreError
from security.streams import StreamError

READERS = 4
PASSING = ".restoring"
"""A folder in the media store for files that are not whole yet."""


class ObjectDamaged(Exception):
    """An object of media is not right."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.name = name


class MediaFetch:
    """Writes files below `folder`, which is nobody else's yet."""

    def __init__(
        self,
        vault: Vault,
        opens: Opens,
        folder: Path,
        *,
        owner: tuple[int, int] | None,
        name_key: bytes,
        telling: Telling,
        stop: threading.Event,
    ) -> None:
        self._vault = vault
        self._opens = opens
        self._folder = folder
        self._owner = owner
        self._name_key = name_key
        self._telling = telling
        self._stop = stop
        self._made = set[str]()
        self._lock = threading.Lock()

    def run(self, files: dict[str, File], refs: dict[str, Ref]) -> int:
        """Write all files that are not there yet; `refs` are the objects by name. Return how many were written."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._owner is not None:  # while we write there, nobody else may
            os.chown(self._folder, 0, 0)
            self._folder.chmod(0o700)
        passing = self._folder / PASSING
        if passing.exists():
            shutil.rmtree(passing)
        passing.mkdir(mode=0o700)
        missing = [each for each in files.values() if not self._is_there(each)]
        wanted: dict[str, dict[int, list[File]]] = {}
        for file in missing:
            wanted.setdefault(file.object, {}).setdefault(file.at, []).append(file)
        for name in refs.keys() - wanted.keys():
            self._telling.add("media", refs[name].size)
        for same in wanted.pop("", {}).values():
            self._empty(same)
        unknown = next((name for name in wanted if name not in refs), None)
        if unknown is not None:
            raise ObjectDamaged(unknown, "an index names it, and no manifest does")
        self._fetch(wanted, refs)
        passing.rmdir()
        if self._owner is not None:
            os.chown(self._folder, *self._owner)
        return len(missing)

    def _fetch(self, wanted: dict[str, dict[int, list[File]]], refs: dict[str, Ref]) -> None:
        failed = threading.Event()
        with ThreadPoolExecutor(READERS, "restore-media") as pool:
            futures: list[Future[None]] = [
                pool.submit(self._object, refs[name], some, failed) for name, some in sorted(wanted.items())
            ]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed.set()
            for future in futures:
                future.cancel()
        for future in done:
            future.result()

    def _object(self, ref: Ref, some: dict[int, list[File]], failed: threading.Event) -> None:
        wanted = [some[at][0] for at in sorted(some)]
        try:
            writing: _Writing | None = None
            # Where each content is compared with its own hash, the object needs none besides its encryption.
            plain = self._vault.read(ref, self._opens, hashed=not self._name_key)
            for file, piece in unpack.contents(plain, wanted, ref.name):
                if self._stop.is_set() or failed.is_set():
                    raise Cancelled
                writing = writing or _Writing(self._passing(), self._owner, self._name_key)
                if piece is not None:
                    writing.add(piece)
                    continue
                writing.finish(file)
                self._place(writing.path, some[file.at])
                writing = None
        except (MediaError, StreamError) as error:
            raise ObjectDamaged(ref.name, str(error)) from None
        except StoreError as error:
            if error.code not in {"StoreDamaged", "NoSuchObject"}:
                raise
            raise ObjectDamaged(ref.name, str(error)) from None
        self._telling.add("media", ref.size)

    def _passing(self) -> Path:
        return self._folder / PASSING / os.urandom(12).hex()

    def _place(self, path: Path, same: list[File]) -> None:
        """Give a whole file its name, and the others of the same contents copies of it."""
        for file in same[1:]:
            copy = self._passing()
            handle = create(copy, 0o600, self._owner)
            with os.fdopen(handle, "wb") as target, path.open("rb") as source:
                shutil.copyfileobj(source, target, 1 << 20)
            self._name(copy, file)
        self._name(path, same[0])

    def _name(self, path: Path, file: File) -> None:
        target = self._folder / _checked(file.path)
        self._make(target.parent)
        os.utime(path, ns=(file.mtime, file.mtime))
        path.replace(target)

    def _empty(self, same: Iterable[File]) -> None:
        for file in same:
            path = self._passing()
            writing = _Writing(path, self._owner, self._name_key)
            writing.finish(file)
            self._name(path, file)

    def _is_there(self, file: File) -> bool:
        with contextlib.suppress(OSError):
            found = (self._folder / _checked(file.path)).lstat()
            return stat.S_ISREG(found.st_mode) and (found.st_size, found.st_mtime_ns) == (file.size, file.mtime)
        return False

    def _make(self, folder: Path) -> None:
        key = str(folder)
        if key in self._made or folder == self._folder:
            return
        self._make(folder.parent)
        with self._lock:
            if key not in self._made:
                folder.mkdir(mode=0o700, exist_ok=True)
                if self._owner is not None:
                    os.chown(folder, *self._owner)
                self._made.add(key)


class _Writing:
    """One file under a passing name."""

    def __init__(self, path: Path, owner: tuple[int, int] | None, name_key: bytes) -> None:
        self.path = path
        self._name_key = name_key
        self._hash = keyed(name_key)
        self._handle = create(path, 0o600, owner)
        self._writeback = Writeback(self._handle)

    def add(self, piece: bytes | memoryview) -> None:
        try:
            if self._name_key:
                self._hash.update(piece)
            write_all(self._handle, piece)
            self._writeback.wrote(len(piece))
        except BaseException:
            os.close(self._handle)
            raise

    def finish(self, file: File) -> None:
        self._writeback.end()
        os.close(self._handle)
        if self._name_key and self._hash.digest() != file.hash:
            raise MediaError(f"{file.path} is not the file that was stored.", code="MediaDamaged")


def _checked(path: str) -> str:
    """Return a media file's path. Raises `MediaError` for one that leads out of what is kept."""
    parts = PurePosixPath(path).parts
    if len(parts) < 2 or parts[0] not in KEPT or ".." in parts or "\0" in path:
        raise MediaError(f"{path!r} is no path of a media file.", code="MediaDamaged")
    return path
