"""Contents of media files on their way into the store: small files together, large ones alone. Imports no Django.

Several objects leave at once; each is read, hashed, compressed where that helps and encrypted piece by piece: memory
holds a few megabytes for each. Contents are known by a hash under a key of this server: whoever can read the store
learns nothing by comparing it with files of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import zstandard

from backups.engine import names
from backups.engine.manifest import Ref
from backups.engine.media.errors import Stopped
from backups.engine.media.scan import Opened, Seen, Source
from backups.engine.media.state import Content, Kept, State
from backups.engine.objects import FILES, Vault
from backups.engine.stores.base import StoreError
from security.streams import DataKey

TOGETHER = 16 * 2**20
"""Bytes of files that are put into one object."""
ALONE = 8 * 2**20
"""Bytes from which on a file is an object of its own."""
MOST_TOGETHER = 4_000
LEVEL = 3
WORTH = 0.97
"""Compressed to less than this it is kept so. Pictures, videos and what clients encrypted do not shrink."""
TRIES = 3
_SAMPLE = 1 << 17
_PERSON = b"hearth media 1"


def keyed(name_key: bytes) -> hashlib.blake2b:
    """Return the hash that contents are known by: BLAKE2b with 32 bytes, keyed."""
    return hashlib.blake2b(digest_size=32, key=name_key, person=_PERSON)


@dataclass
class Stored:
    """What came of some files."""

    files: dict[str, Kept] = field(default_factory=dict)
    contents: dict[bytes, Content] = field(default_factory=dict)
    objects: list[Ref] = field(default_factory=list)
    unsettled: set[str] = field(default_factory=set)
    """Paths that changed while they were read, or are gone: the next run looks again."""
    unread: dict[str, str] = field(default_factory=dict)
    """Files that the disk did not give, and why."""


@dataclass(kw_only=True)
class Packer:
    """Stores the files of one run."""

    vault: Vault
    source: Source
    state: State
    run: str
    key: Callable[[], DataKey]
    name_key: bytes
    uploads: int = 3
    stopped: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._claims: dict[bytes, int] = {}
        self._sizes: dict[int, threading.Lock] = {}
        self._stored = Stored()

    def store(self, files: Iterable[tuple[str, Seen]]) -> Stored:
        """Store what is not known yet. Raises `StoreError`, `Stopped`; then what was stored is named by nothing."""
        with ThreadPoolExecutor(self.uploads, "media") as pool:
            waiting: set[Future[None]] = set()
            try:
                for task, some in enumerate(_tasks(files)):
                    waiting.add(pool.submit(self._task, task, some))
                    if len(waiting) > self.uploads:
                        waiting = _done(waiting)
                while waiting:
                    waiting = _done(waiting)
            except BaseException:
                self.stopped = _always  # the others end at their next piece
                raise
        return self._stored

    def _task(self, task: int, files: list[tuple[str, Seen]]) -> None:
        for left in range(TRIES, 0, -1):
            try:
                return self._object(task, files)
            except StoreError as error:
                if left == 1 or not error.retry or self.stopped():
                    raise
        return None

    def _object(self, task: int, files: list[tuple[str, Seen]]) -> None:
        """Put these files into one object, if there is anything in them that is not stored yet."""
        with self._lock:
            name = names.media(self.run, next(self._numbers))
        found = Stored()
        path, seen = files[0]
        if seen.size >= ALONE:
            # Two large ones of one size may be the same: the second waits until the first one's hash is known.
            with self._one_of(seen.size) as perhaps:
                self._put(name, self._large(task, name, path, found, perhaps=perhaps), found)
        else:
            self._put(name, self._small(task, name, files, found), found)

    def _put(self, name: str, pieces: Iterator[bytes], found: Stored) -> None:
        if (first := next(pieces, None)) is not None:
            ref = self.vault.put(name, itertools.chain([first], pieces), self.key(), FILES, self.run)
            found.objects.append(ref)
        with self._lock:
            self._stored.files.update(found.files)
            self._stored.unsettled |= found.unsettled
            self._stored.unread.update(found.unread)
            new = {digest: each for digest, each in found.contents.items() if digest not in self._stored.contents}
            self._stored.contents.update(new)
            if new:
                self._stored.objects.extend(found.objects)

    @contextlib.contextmanager
    def _one_of(self, size: int) -> Iterator[bool]:
        """Work on large files of one size one after the other. Gives whether contents of this size may be known."""
        with self._lock:
            before = size in self._sizes
            lock = self._sizes.setdefault(size, threading.Lock())
        with lock:
            yield before or self.state.knows_size(size)

    def _small(self, task: int, name: str, files: list[tuple[str, Seen]], found: Stored) -> Iterator[bytes]:
        packer, at = zstandard.ZstdCompressor(level=LEVEL), 0
        for path, _ in files:
            with _Reading(self, path, found, most=2 * ALONE) as reading:
                data = list(reading.pieces())
                digest = reading.keep()
                if digest in found.contents or not self._is_new(digest, task):
                    continue
                kept = _packed(packer, data)
                length = sum(map(len, kept or data))
                place = name if length else ""
                found.contents[digest] = Content(reading.size, place, at if length else 0, length, kept is not None)
                at += length
                yield from kept or data

    def _large(self, task: int, name: str, path: str, found: Stored, *, perhaps: bool) -> Iterator[bytes]:
        # A large file is read twice only where one of its size is stored.
        if perhaps and self._is_stored(task, path, found):
            return
        with _Reading(self, path, found) as reading:
            pieces = reading.pieces()
            sample = next(pieces, b"")
            packer = zstandard.ZstdCompressor(level=LEVEL)
            packed = len(packer.compress(sample)) < WORTH * len(sample)
            length, stream = 0, packer.compressobj() if packed else None
            for piece in itertools.chain([sample], pieces):
                kept = piece if stream is None else stream.compress(piece)
                length += len(kept)
                yield kept
            if stream is not None:
                kept = stream.flush()
                length += len(kept)
                yield kept
            digest = reading.keep()
            if self._is_new(digest, task):
                place = name if reading.size else ""
                found.contents[digest] = Content(reading.size, place, 0, length if place else 0, packed and bool(place))

    def _is_stored(self, task: int, path: str, found: Stored) -> bool:
        """Hash a file and return whether its contents are stored already (or it is gone)."""
        with _Reading(self, path, found) as reading:
            for _ in reading.pieces():
                pass
            digest = reading.digest()
            with self._lock:
                elsewhere = self._claims.get(digest, task) != task
            if not elsewhere and not self.state.knows(digest):
                return False
            reading.keep()
        return True

    def _is_new(self, digest: bytes, task: int) -> bool:
        """Claim contents for one object; the same task may claim them again when it tries again."""
        with self._lock:
            return self._claims.setdefault(digest, task) == task and not self.state.knows(digest)


class _Skip(Exception):
    """This file is left for the next run."""


class _Reading:
    """Reads one file and says in `found` what came of it. Leaving it early by `_Skip` is no error."""

    def __init__(self, packer: Packer, path: str, found: Stored, *, most: int = 1 << 62) -> None:
        self.size = 0
        self._packer = packer
        self._path = path
        self._found = found
        self._most = most
        self._hash = keyed(packer.name_key)
        self._stack = contextlib.ExitStack()
        self._file: Opened | None = None

    def __enter__(self) -> _Reading:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._stack.close()
        return kind is _Skip

    def pieces(self) -> Iterator[bytes]:
        try:
            self._file = self._stack.enter_context(self._packer.source.open(self._path))
            if self._file.seen.size > self._most:
                raise _Skip  # it has grown: no longer one of the small ones
            for piece in self._file.pieces():
                if self._packer.stopped():
                    raise Stopped
                self._hash.update(piece)
                self.size += len(piece)
                yield piece
        except FileNotFoundError:
            raise self._left() from None
        except OSError as error:
            self._found.unread[self._path] = error.strerror or type(error).__name__
            raise self._left() from None
        except _Skip:
            raise self._left() from None

    def digest(self) -> bytes:
        return self._hash.digest()

    def keep(self) -> bytes:
        """Write down that the file was read to its end, and return its hash."""
        if self._file is None:
            raise self._left()
        seen = self._file.seen
        if self._file.changed() or self.size != seen.size:
            self._found.unsettled.add(self._path)
        self._found.files[self._path] = Kept(seen._replace(size=self.size), self.digest())
        return self.digest()

    def _left(self) -> _Skip:
        self._found.unsettled.add(self._path)
        return _Skip()


def _packed(packer: zstandard.ZstdCompressor, data: list[bytes]) -> list[bytes] | None:
    """Return a file's contents compressed, or None where that is not worth it."""
    size = sum(map(len, data))
    if size > _SAMPLE:  # most of what is large does not shrink: a little from its middle tells
        sample = data[(len(data) - 1) // 2][:_SAMPLE]
        if len(packer.compress(sample)) >= WORTH * len(sample):
            return None
    stream = packer.compressobj(size=size)
    packed = [*map(stream.compress, data), stream.flush()]
    return packed if sum(map(len, packed)) < WORTH * size else None


def _tasks(files: Iterable[tuple[str, Seen]]) -> Iterator[list[tuple[str, Seen]]]:
    """Yield the files of one object after the other."""
    some: list[tuple[str, Seen]] = []
    size = 0
    for path, seen in files:
        if seen.size >= ALONE:
            yield [(path, seen)]
            continue
        some.append((path, seen))
        size += seen.size
        if size >= TOGETHER or len(some) >= MOST_TOGETHER:
            yield some
            some, size = [], 0
    if some:
        yield some


def _done(waiting: set[Future[None]]) -> set[Future[None]]:
    """Wait for one at least, raise what it raised, and return the others."""
    done, left = wait(waiting, return_when=FIRST_COMPLETED)
    for each in done:
        each.result()
    return left


def _always() -> bool:
    return True
