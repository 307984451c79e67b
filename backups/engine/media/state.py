"""What the last media run saw and stored, in a SQLite file of the state folder. Imports no Django.

Losing it costs one look at every file: which contents are stored is read back from the store (`index.Known`).
Only contents that a file of the last run has are known here. Expiry never removes those; older ones it may.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from backups.engine.manifest import Ref
from backups.engine.media.scan import Group, Seen

NAME = "media.sqlite"
_VERSION = 1
_TABLES = """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE groups (name TEXT PRIMARY KEY, seen BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime INTEGER NOT NULL, mark TEXT NOT NULL,
                        hash BLOB NOT NULL) WITHOUT ROWID;
    CREATE INDEX files_hash ON files (hash);
    CREATE TABLE contents (hash BLOB PRIMARY KEY, size INTEGER NOT NULL, object INTEGER NOT NULL,
                           at INTEGER NOT NULL, length INTEGER NOT NULL, packed INTEGER NOT NULL) WITHOUT ROWID;
    CREATE INDEX contents_size ON contents (size);
    CREATE INDEX contents_object ON contents (object);
    CREATE TABLE objects (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, size INTEGER NOT NULL,
                          sha256 TEXT NOT NULL, mark TEXT NOT NULL, key BLOB NOT NULL, part_of TEXT NOT NULL,
                          plain INTEGER NOT NULL);
"""
_PRAGMAS = "PRAGMA journal_mode = WAL; PRAGMA cache_size = -4096;"
_ENTRIES = (
    "SELECT path, f.size, mtime, f.mark, f.hash, c.size, coalesce(name, ''), at, length, packed FROM files f "
    "JOIN contents c ON c.hash = f.hash LEFT JOIN objects o ON o.id = c.object "
)
_CONTENTS = (
    "SELECT hash, c.size, coalesce(name, ''), at, length, packed FROM contents c LEFT JOIN objects ON id = object "
    "ORDER BY object, at"
)
_OBJECTS = "SELECT name, size, sha256, mark, key, part_of, plain FROM objects ORDER BY name"
_ADD_OBJECT = (
    "INSERT OR IGNORE INTO objects (name, size, sha256, mark, key, part_of, plain) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_PATHS_IN = (
    "SELECT path FROM files WHERE hash IN (SELECT hash FROM contents JOIN objects ON id = object WHERE name = ?)"
)
_EMPTY = (
    "DELETE FROM groups",
    "DELETE FROM files",
    "DELETE FROM contents",
    "DELETE FROM objects",
    "DELETE FROM meta WHERE name <> 'identity'",
)
_LOST = "DELETE FROM contents WHERE hash = ? AND NOT EXISTS (SELECT 1 FROM files f WHERE f.hash = contents.hash)"
_DECODER = msgspec.msgpack.Decoder(Group)


class Kept(NamedTuple):
    """A file as it was stored: its version and its keyed hash."""

    seen: Seen
    hash: bytes


class Content(NamedTuple):
    """Where contents lie: bytes `at` to `at + length` of an object's plaintext, `size` when unpacked."""

    size: int
    object: str
    at: int
    length: int
    packed: bool


class Run(msgspec.Struct, kw_only=True):
    """The run that the state is of."""

    id: str
    ref: Ref
    whole: bool
    chain: int
    files: int
    bytes: int
    full_bytes: int
    """Of the last full index."""
    delta_bytes: int = 0
    """Of all indexes since that one."""


class State:
    """The file, held by one run at a time. Its methods may be called by several threads."""

    def __init__(self, folder: Path, identity: str) -> None:
        """Open it. `identity` names server and store: the state of another one counts as none."""
        self._path = folder / NAME
        self._lock = threading.RLock()
        try:
            self._database = self._opened(identity)
        except sqlite3.DatabaseError:
            self.remove()
            self._database = self._opened(identity)

    def close(self) -> None:
        self._database.close()

    def meta(self, name: str) -> str:
        with self._lock:
            found = self._database.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return str(found[0]) if found else ""

    def set_meta(self, name: str, value: str) -> None:
        with self._lock:
            self._database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    @property
    def run(self) -> Run | None:
        """The last run; None when nothing is known."""
        found = self.meta("run")
        return msgspec.json.decode(found, type=Run) if found else None

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """All or nothing."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def finish(self, run: Run) -> None:
        self.set_meta("run", msgspec.json.encode(run).decode())

    # Groups and files

    def groups(self) -> dict[str, bytes]:
        """Return what is known of every group, packed: some 20 bytes for each folder."""
        with self._lock:
            return dict(self._database.execute("SELECT name, seen FROM groups"))

    def set_group(self, name: str, group: Group | None) -> None:
        with self._lock:
            if group is None:
                self._database.execute("DELETE FROM groups WHERE name = ?", (name,))
            else:
                row = (name, packed_group(group))
                self._database.execute("INSERT OR REPLACE INTO groups VALUES (?, ?)", row)

    def files_of(self, group: str) -> dict[str, Seen]:
        """Return the files of a group by their paths."""
        select = "SELECT path, size, mtime, mark FROM files WHERE path > ? AND path < ?"
        with self._lock:
            rows = self._database.execute(select, (f"{group}/", f"{group}0"))  # "0" is the next after "/"
            return {path: Seen(size, mtime, mark) for path, size, mtime, mark in rows}

    def keep(self, files: Iterable[tuple[str, Kept]]) -> None:
        with self._lock:
            rows = ((path, *kept.seen, kept.hash) for path, kept in files)
            self._database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)

    def drop(self, paths: Iterable[str]) -> None:
        with self._lock:
            self._database.executemany("DELETE FROM files WHERE path = ?", ((path,) for path in paths))

    def totals(self) -> tuple[int, int]:
        """Return how many files there are, and their bytes."""
        with self._lock:
            count, size = self._database.execute("SELECT count(*), coalesce(sum(size), 0) FROM files").fetchone()
        return count, size

    def entries(self, paths: list[str] | None = None) -> Iterator[tuple[str, Kept, Content]]:
        """Yield files with where their contents lie, in the order of their paths: all, or those of `paths`."""
        rows: Iterable[tuple[Any, ...]]
        if paths is None:
            rows = self._database.execute(_ENTRIES + "ORDER BY path")
        else:
            one = _ENTRIES + "WHERE path = ?"
            rows = (row for path in sorted(paths) for row in self._database.execute(one, (path,)))
        for path, size, mtime, mark, digest, plain, name, at, length, packed in rows:
            yield path, Kept(Seen(size, mtime, mark), digest), Content(plain, name, at, length, bool(packed))

    # Contents and objects

    def knows(self, digest: bytes) -> bool:
        with self._lock:
            return self._database.execute("SELECT 1 FROM contents WHERE hash = ?", (digest,)).fetchone() is not None

    def knows_size(self, size: int) -> bool:
        """Return whether any contents have this size: only then is it worth to hash a large file before it is sent."""
        with self._lock:
            found = self._database.execute("SELECT 1 FROM contents WHERE size = ? LIMIT 1", (size,)).fetchone()
        return found is not None

    def add(self, objects: Iterable[Ref], contents: Iterable[tuple[bytes, Content]]) -> None:
        numbers = {"": 0}
        with self._lock:
            for ref in objects:
                row = (ref.name, ref.size, ref.sha256, ref.mark, ref.key.bytes, ref.part_of, ref.plain)
                self._database.execute(_ADD_OBJECT, row)
            for digest, found in contents:
                if (number := numbers.get(found.object)) is None:
                    select = "SELECT id FROM objects WHERE name = ?"
                    number = numbers[found.object] = self._database.execute(select, (found.object,)).fetchone()[0]
                place = (digest, found.size, number, found.at, found.length, found.packed)
                self._database.execute("INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?, ?, ?)", place)

    def hashes(self, paths: Iterable[str]) -> set[bytes]:
        """Return the keyed hashes that these files have."""
        select = "SELECT hash FROM files WHERE path = ?"
        with self._lock:
            return {digest for path in paths for (digest,) in self._database.execute(select, (path,))}

    def tidy(self, hashes: Iterable[bytes] | None = None) -> None:
        """Forget contents that no file has, and objects without any. With `hashes`, look at these contents alone."""
        with self._lock:
            if hashes is None:
                self._database.execute("DELETE FROM contents WHERE hash NOT IN (SELECT hash FROM files)")
                gone = 1
            else:
                gone = sum(self._database.execute(_LOST, (digest,)).rowcount for digest in hashes)
            if gone:
                self._database.execute("DELETE FROM objects WHERE id NOT IN (SELECT object FROM contents)")

    def contents(self) -> Iterator[tuple[bytes, Content]]:
        """Yield all contents that are known, and where."""
        for digest, size, name, at, length, packed in self._database.execute(_CONTENTS):
            yield digest, Content(size, name, at, length, bool(packed))

    def objects(self) -> Iterator[Ref]:
        """Yield all objects with contents that a file has, in the order of their names."""
        for name, size, sha256, mark, key, part_of, plain in self._database.execute(_OBJECTS):
            yield Ref(
                name=name, size=size, sha256=sha256, mark=mark, key=uuid.UUID(bytes=key), part_of=part_of, plain=plain
            )

    def forget(self, names: Iterable[str]) -> int:
        """Forget objects that are lost or damaged: the next run stores their files anew. Return how many files."""
        with self.changing():
            total = 0
            for name in names:
                paths = [path for (path,) in self._database.execute(_PATHS_IN, (name,))]
                for path in paths:
                    self.set_group("/".join(path.split("/")[:2]), None)
                self.drop(paths)
                total += len(paths)
            self.tidy()
        return total

    def reset(self) -> None:
        """Forget everything."""
        with self.changing():
            for statement in _EMPTY:
                self._database.execute(statement)

    def _opened(self, identity: str) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=30)
        try:
            self._path.chmod(0o600)
            found.executescript(_PRAGMAS)
            (version,) = found.execute("PRAGMA user_version").fetchone()
            if version == 0:
                found.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {_VERSION}; COMMIT;")
            elif version != _VERSION:
                raise sqlite3.DatabaseError("of another release")
            self._database = found
            if self.meta("identity") != identity:
                self.reset()
                self.set_meta("identity", identity)
        except BaseException:
            found.close()
            raise
        return found

    def remove(self) -> None:
        """Lose the state; a new one begins with what the store tells."""
        # What can't be read is worth nothing: all of it is told by the store and the files.
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(NAME + suffix).unlink(missing_ok=True)


def known_group(packed: bytes | None) -> Group | None:
    """Return what `State.groups` has of one group."""
    return None if packed is None else _DECODER.decode(packed)


def packed_group(group: Group) -> bytes:
    """Return a group as `State.groups` has it."""
    return msgspec.msgpack.encode(group)
