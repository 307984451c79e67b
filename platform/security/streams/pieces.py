"""Where bytes come from and where they go, without copies that could be saved and without new memory for each chunk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from security.streams.ciphers import Bytes
from security.streams.header import SEALED_SIZE

_NOTHING = memoryview(b"")


class Readable(Protocol):
    """A binary file: `readinto` is used where there is one."""

    def read(self, size: int, /) -> Any: ...


class Writable(Protocol):
    """A binary file to write to; it may take less than it was given, and then says how much."""

    def write(self, data: Any, /) -> int | None: ...


class Source(Protocol):
    """Gives exactly as many bytes as are asked for, or fewer at its end. A view is valid until the next `take`."""

    def take(self, size: int) -> memoryview: ...


class Pieces:
    """A source over pieces of any size. A piece that holds all that is asked for is not copied.

    The next piece is asked for only when the last one is used up, so its maker may use one buffer again and again.
    """

    def __init__(self, pieces: Iterable[Bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = _NOTHING
        self._staging: memoryview | None = None

    def take(self, size: int) -> memoryview:
        if self._fill() < size:
            return self._assemble(size)
        return self._cut(size)

    def _assemble(self, size: int) -> memoryview:
        if self._staging is None:
            self._staging = memoryview(bytearray(SEALED_SIZE))
        got = 0
        while got < size and (there := self._fill()):
            part = self._cut(min(there, size - got))
            self._staging[got : got + len(part)] = part
            got += len(part)
        return self._staging[:got]

    def _fill(self) -> int:
        """Return how many bytes lie ready; 0 only at the end."""
        while not self._rest:
            self._rest = _NOTHING  # lets go of the used piece before its maker touches it again
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece).cast("B")
        return len(self._rest)

    def _cut(self, size: int) -> memoryview:
        part, self._rest = self._rest[:size], self._rest[size:]
        return part


class FileSource:
    """A source over a binary file that blocks, which is never closed here."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._readinto = getattr(file, "readinto", None) or self._read_and_copy
        self._staging = memoryview(bytearray(SEALED_SIZE))

    def take(self, size: int) -> memoryview:
        got = 0
        while got < size:
            count = self._readinto(self._staging[got:size])
            if count is None:
                raise BlockingIOError("A stream can be read only from a file that blocks.")
            if not count:
                break
            got += count
        return self._staging[:got]

    def _read_and_copy(self, target: memoryview) -> int | None:
        data = self._file.read(len(target))
        if data is None:
            return None
        target[: len(data)] = data
        return len(data)


class Loan:
    """One buffer, lent for each chunk anew. The view lent before stops working, so that nobody reads it by mistake."""

    def __init__(self, size: int) -> None:
        self._buffer = memoryview(bytearray(size))
        self._lent = self._buffer[:0]

    def lend(self, size: int) -> memoryview:
        try:
            self._lent.release()
        except BufferError:
            # Somebody still works with the last chunk: leave it to them.
            self._buffer = memoryview(bytearray(len(self._buffer)))
        self._lent = self._buffer[:size]
        return self._lent


def write_all(sink: Writable, data: memoryview) -> None:
    """Write all of `data`, also to a raw file that takes only a part at a time."""
    while data:
        count = sink.write(data)
        if count is None:
            raise BlockingIOError("A stream can be written only to a file that blocks.")
        data = data[count:]
