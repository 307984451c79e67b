"""An export's archive as its owner gets it: opened a chunk at a time on its way, from any byte on.

What is authenticated before it is given is each chunk, and before the first of them the end: so the length that is
announced is the right one, and a connection that broke goes on where it was. A process gives few at once, and reads
them in threads of their own: a store that is slow keeps nobody else waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import threading
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, cast

from django.views.decorators.debug import sensitive_variables

from backups import places
from backups.engine.names import EXPORT_PURPOSE
from backups.engine.stores.base import Store
from backups.engine.stores.memory import MIB
from backups.exporting.models import Export
from security.keyring import deks
from security.streams import CHUNK_SIZE, SEALED_SIZE, Context, DataKey, SeekableReader

if TYPE_CHECKING:
    from typing_extensions import Buffer

MOST = 8
"""Downloads at once in one process: each holds a store's connections, and up to `MEMORY` beside a few chunks."""
MOST_OF_ONE = 3
"""Of them for one organisation: whoever takes an archive in many ranges leaves room for others."""
MEMORY = 8 * MIB
_THREADS = ThreadPoolExecutor(MOST, thread_name_prefix="download")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True)
class Span:
    """Bytes of an archive from `begin` up to, but without, `end`."""

    begin: int
    end: int


class Unsatisfiable(Exception):
    """The archive has no such bytes."""


def span(header: str, size: int) -> Span | None:
    """Return what a `Range` header asks for (RFC 9110, 14.2); None: all of it. Several ranges at once count as all.

    Raises `Unsatisfiable`.
    """
    found = _RANGE.fullmatch(header.strip())
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        begin, end = max(size - int(found[2]), 0), size
    else:
        begin, end = int(found[1]), min(int(found[2]) + 1, size) if found[2] else size
        if found[2] and int(found[2]) < begin:
            return None  # such a header makes no sense, and is then as none
    if begin >= end:
        raise Unsatisfiable
    return Span(begin, end)


class Crowded(Exception):
    """As many downloads are being given as may be at once."""


class Pieces:
    """Bytes on their way, with the first of them there. Whoever takes them slowly holds no thread meanwhile."""

    def __init__(self, found: Generator[bytes, None, None]) -> None:
        self._found = found
        self._alone = threading.Lock()
        self._closed = False
        self._first = next(found)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        try:
            while piece := await loop.run_in_executor(_THREADS, self._next):
                yield piece
        finally:
            self.close()

    def __del__(self) -> None:
        self.close()  # of whoever hung up before there was an answer

    def close(self) -> None:
        """Let go of the store, soon: what is on its way from it is waited for, but not by the caller."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(RuntimeError):  # the process ends
            _THREADS.submit(_close, self._found, self._alone)

    def _next(self) -> bytes:
        with self._alone:
            first, self._first = self._first, b""
            return first or next(self._found, b"")


@sensitive_variables()
def pieces(export: Export, wanted: Span) -> Pieces:
    """Return bytes of an export's archive, opened and ready to be read.

    Raises `Crowded`, and `StoreError`, `StreamError`, `SecurityError` at once where the archive can't be had.
    """
    return Pieces(_pieces(export, wanted))


def _close(found: Generator[bytes, None, None], alone: threading.Lock) -> None:
    with alone:
        found.close()


class _Room:
    """Counts the downloads of this process."""

    def __init__(self) -> None:
        self._alone = threading.Lock()
        self._given: Counter[uuid.UUID] = Counter()

    @contextlib.contextmanager
    def taken(self, organisation: uuid.UUID) -> Iterator[None]:
        with self._alone:
            if self._given.total() >= MOST or self._given[organisation] >= MOST_OF_ONE:
                raise Crowded
            self._given[organisation] += 1
        try:
            yield
        finally:
            with self._alone:
                self._given[organisation] -= 1
                self._given += Counter()  # forgets those that have none


_ROOM = _Room()


@sensitive_variables()
def _pieces(export: Export, wanted: Span) -> Generator[bytes, None, None]:
    server, organisation = export.restore.source_id, export.restore.source.organisation_id
    context = Context(organisation=str(organisation), server=str(server), path=export.object, restore_point="")
    whose = deks.Context(organisation, EXPORT_PURPOSE, server, export.object)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ROOM.taken(organisation))
        store = stack.enter_context(places.opened(export.restore.store, server, memory=MEMORY))
        identity = cast("uuid.UUID", export.key)
        with deks.open_data_key(identity, whose) as opened:
            key = DataKey(identity, bytes(opened.value))
        stored = stack.enter_context(_Stored(store, export.object, export.stored_bytes))
        reader = SeekableReader(cast("IO[bytes]", stored), key, context)
        at = wanted.begin
        while at < wanted.end:
            index, start = divmod(at, CHUNK_SIZE)
            piece = bytes(reader.chunk(index)[start : start + wanted.end - at])
            at += len(piece)
            yield piece


class _Stored(io.RawIOBase):
    """An object of a store as a file that can seek. Read on for longer than a chunk, it goes on with one request."""

    def __init__(self, store: Store, name: str, size: int) -> None:
        self._store, self._name, self._size = store, name, size
        self._at = 0
        self._coming: Iterator[bytes] | None = None
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence] + offset
        if start != self._at:
            self._leave()
            self._at = start
        return start

    def tell(self) -> int:
        return self._at

    def readinto(self, target: Buffer, /) -> int:
        with memoryview(target) as raw, raw.cast("B") as view:
            if not view or self._at >= self._size:
                return 0
            if not self._rest:
                self._rest = memoryview(self._next())
            size = min(len(view), len(self._rest))
            view[:size] = self._rest[:size]
            self._rest = self._rest[size:]
            self._at += size
            return size

    def close(self) -> None:
        self._leave()
        super().close()

    def _next(self) -> bytes:
        if self._coming is None:  # perhaps a header or an end alone: no more than that is asked for
            self._coming = self._store.get(self._name, offset=self._at, length=SEALED_SIZE)
        piece = next(self._coming, b"")
        if not piece:
            self._coming = self._store.get(self._name, offset=self._at)
            piece = next(self._coming, b"")
        return piece

    def _leave(self) -> None:
        coming, self._coming, self._rest = self._coming, None, memoryview(b"")
        if isinstance(coming, Generator):
            coming.close()
