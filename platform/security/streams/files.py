"""Streams as file objects. None of them closes the file below it: who opened it closes it."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from types import TracebackType
from typing import IO, TYPE_CHECKING

from security.streams.chunks import Sealer
from security.streams.ciphers import TAG_SIZE, Cipher
from security.streams.context import Context, DataKey
from security.streams.errors import StreamError, Unfinished
from security.streams.flow import Keys, begin, opened, sealed
from security.streams.header import CHUNK_SIZE, HEADER_SIZE, SEALED_SIZE
from security.streams.pieces import FileSource, Loan, Readable, Writable, write_all

if TYPE_CHECKING:
    from typing_extensions import Buffer


class _ChunkReader(io.RawIOBase):
    """Reads what an iterator of chunks yields. An error stays: a second read must not look like the end."""

    def __init__(self, chunks: Iterator[memoryview]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")
        self._failure: BaseException | None = None
        self._whole = False

    def readable(self) -> bool:
        return True

    @property
    def whole(self) -> bool:
        """Whether the end was reached and found right."""
        return self._whole

    def drain(self) -> None:
        """Read on to the end and throw it away: for readers such as `tarfile` that stop before it."""
        while self._ready():
            self._rest = self._rest[:0]

    def readinto(self, target: Buffer, /) -> int:
        with memoryview(target) as raw, raw.cast("B") as view:
            if not view or not self._ready():
                return 0
            size = min(len(view), len(self._rest))
            view[:size] = self._rest[:size]
            self._rest = self._rest[size:]
            return size

    def _ready(self) -> bool:
        if self.closed:
            raise ValueError("The stream's reader is closed.")
        if self._failure is not None:
            raise self._failure
        try:
            if not self._rest and not self._whole:
                self._rest = next(self._chunks, memoryview(b""))
                self._whole = not self._rest
        except BaseException as error:
            self._failure = error
            raise
        return not self._whole


class EncryptingReader(_ChunkReader):
    """Reads as the encrypted stream of the plain file `source`: for uploads that want a file to read from."""

    def __init__(self, source: Readable, key: DataKey, context: Context, cipher: Cipher) -> None:
        super().__init__(sealed(FileSource(source), Sealer(key, context, cipher)))


class DecryptingReader(_ChunkReader):
    """Reads as the plaintext of the encrypted file `source`, from its start to its end.

    `read` returns `b""` only after the final chunk was found right; a stream without it raises `StreamError`, again
    at every further read. Who stops early calls `drain` or keeps nothing.
    """

    def __init__(self, source: Readable, key: Keys, context: Context) -> None:
        super().__init__(opened(FileSource(source), key, context))


class EncryptingWriter(io.RawIOBase):
    """Encrypts what is written to it into the file `sink`.

    Only `finish` (which a `with` block without an error does) writes the final chunk. Closed before that, it raises
    `Unfinished`; forgotten, or after an error, it leaves a stream that nobody can read as whole.
    """

    def __init__(self, sink: Writable, key: DataKey, context: Context, cipher: Cipher) -> None:
        self._sink = sink
        self._sealer = Sealer(key, context, cipher)
        self._plain = memoryview(bytearray(CHUNK_SIZE))
        self._filled = 0
        self._sealed = memoryview(bytearray(SEALED_SIZE))
        self._ended = False  # finished, aborted or failed
        self._guard(memoryview(self._sealer.header))

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        """Take all of `data`. A write that failed ends the stream for good."""
        self._refuse_when_ended()
        with memoryview(data) as raw, raw.cast("B") as view:
            size, at = len(view), 0
            while at < size:
                at += self._take(view[at:])
            return size

    def finish(self) -> None:
        """Write the final chunk. Nothing can be written after it."""
        self._refuse_when_ended()
        self._seal(self._plain[: self._filled])
        self._ended = True

    def abort(self) -> None:
        """End without the final chunk: what was written so far can't be read as whole."""
        self._ended = True

    def close(self) -> None:
        if self.closed:
            return
        unfinished, self._ended = not getattr(self, "_ended", True), True
        super().close()
        if unfinished:
            raise Unfinished(
                self._sealer.name, "it was closed before it was finished, so what was written can't be read back."
            )

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self.abort()
        elif not self._ended:
            self.finish()
        self.close()

    def __del__(self) -> None:
        # The parent's would close, and an object that was only forgotten has nobody to raise to.
        self._ended = True

    def _take(self, view: memoryview) -> int:
        """Encrypt or keep the start of `view`; return how much."""
        if not self._filled and len(view) >= CHUNK_SIZE:
            self._seal(view[:CHUNK_SIZE])
            return CHUNK_SIZE
        size = min(len(view), CHUNK_SIZE - self._filled)
        self._plain[self._filled : self._filled + size] = view[:size]
        self._filled += size
        if self._filled == CHUNK_SIZE:
            self._filled = 0
            self._seal(self._plain)
        return size

    def _seal(self, data: memoryview) -> None:
        chunk = self._sealed[: len(data) + TAG_SIZE]
        try:
            self._sealer.seal_into(data, chunk)
        except StreamError:
            self._ended = True
            raise
        self._guard(chunk)

    def _guard(self, data: memoryview) -> None:
        try:
            write_all(self._sink, data)
        except BaseException:
            self._ended = True
            raise

    def _refuse_when_ended(self) -> None:
        if self.closed or self._ended:
            raise ValueError(f"{self._sealer.name}: this stream is finished or failed; nothing more can be written.")


class SeekableReader(io.RawIOBase):
    """Random access to the plaintext of an encrypted file that can seek; one chunk is read and kept at a time.

    The header and the final chunk are checked first, so the length is authentic and a shortened stream is refused at
    once. Every chunk is authenticated when it is read.
    """

    def __init__(self, source: IO[bytes], key: Keys, context: Context) -> None:
        self._source = source
        self._reader = FileSource(source)
        size = source.seek(0, os.SEEK_END)
        source.seek(0)
        self._opener = begin(self._reader.take(HEADER_SIZE), key, context)
        self._last, self._tail = divmod(size - HEADER_SIZE, SEALED_SIZE)
        self._loan = Loan(CHUNK_SIZE)
        self._kept: tuple[int, memoryview] | None = None
        self._at = 0
        self.length = self._last * CHUNK_SIZE + len(self.chunk(self._last))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.length}[whence]
        if start + offset < 0:
            raise ValueError("A place before the start can't be sought.")
        self._at = start + offset
        return self._at

    def chunk(self, index: int) -> memoryview:
        """Return the plaintext of one chunk, valid until another is read. Raises `IndexError` or `StreamError`."""
        if not 0 <= index <= self._last:
            raise IndexError(f"There is no chunk {index}; the last is {self._last}.")
        if self._kept is not None and self._kept[0] == index:
            return self._kept[1]
        self._kept = None
        self._source.seek(HEADER_SIZE + index * SEALED_SIZE)
        wanted = SEALED_SIZE if index < self._last else self._tail
        data = self._reader.take(wanted)
        if len(data) < wanted:
            raise self._opener.cut(index)
        view = self._loan.lend(max(wanted - TAG_SIZE, 0))
        self._opener.open_into(index, data, view)
        self._kept = (index, view)
        return view

    def readinto(self, target: Buffer, /) -> int:
        if self.closed:
            raise ValueError("The stream's reader is closed.")
        with memoryview(target) as raw, raw.cast("B") as view:
            if not view or self._at >= self.length:
                return 0
            index, start = divmod(self._at, CHUNK_SIZE)
            part = self.chunk(index)[start : start + len(view)]
            view[: len(part)] = part
            self._at += len(part)
            return len(part)
