"""Base backups' archives, member by member as they come: nothing is copied, nothing is held. Imports no Django.

Only what pg_basebackup writes: POSIX ustar headers, sizes in octal or, past 8 GiB, in base 256 (`tarCreateHeader` in
PostgreSQL's src/port/tar.c). Python's tarfile takes several times the processor's time for the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

BLOCK = 512
_CHECKSUM = slice(148, 156)
_KINDS = {b"0": "file", b"\0": "file", b"5": "folder"}


class ArchiveError(Exception):
    """This is no archive of PostgreSQL's, or it ended too early. The text is for a person."""


class Member(NamedTuple):
    """What a header says. `kind` is `file`, `folder`, or empty for what PostgreSQL does not write here."""

    name: str
    size: int
    mode: int
    kind: str


def members(pieces: Iterable[bytes | memoryview]) -> Iterator[tuple[Member, memoryview | None]]:
    """Yield each member with its bytes, a piece at a time, and with None behind the last of them.

    A piece is valid until the next. Raises `ArchiveError`; what `pieces` raises passes through, and they are read to
    their end.
    """
    reader = _Reader()
    for piece in pieces:
        yield from reader.take(memoryview(piece))
    if not reader.ended:
        raise ArchiveError("it ends too early")


class _Reader:
    """Where an archive has been read to."""

    def __init__(self) -> None:
        self.ended = False
        self._header = bytearray()
        self._member = Member("", 0, 0, "")
        self._left = 0
        """Bytes of the member that are still to come."""
        self._padding = 0
        """Bytes behind it, up to the next header."""

    def take(self, view: memoryview) -> Iterator[tuple[Member, memoryview | None]]:
        while view and not self.ended:
            if self._left:
                part, view = view[: self._left], view[self._left :]
                self._left -= len(part)
                yield self._member, part
            elif self._padding:
                step = min(self._padding, len(view))
                view, self._padding = view[step:], self._padding - step
                continue
            else:
                view = self._head(view)
            if not self._left and not self._header and not self.ended:
                yield self._member, None

    def _head(self, view: memoryview) -> memoryview:
        """Take what belongs to a header, and return the rest. The header is empty again once it was whole."""
        step = min(BLOCK - len(self._header), len(view))
        self._header += view[:step]
        if len(self._header) == BLOCK:
            self.ended = not any(self._header)
            if not self.ended:
                self._member = _member(bytes(self._header))
                self._left, self._padding = self._member.size, -self._member.size % BLOCK
            self._header.clear()
        return view[step:]


def _member(header: bytes) -> Member:
    told, kind = header[_CHECKSUM], header[156:157]
    if header[257:262] != b"ustar" or _number(told) != sum(header) - sum(told) + 8 * ord(" "):
        raise ArchiveError("a header in it is not right")
    name = b"/".join(filter(None, (header[345:500].split(b"\0")[0], header[:100].split(b"\0")[0])))
    size = int.from_bytes(header[125:136], "big") if header[124] & 0x80 else _number(header[124:136])
    return Member(name.decode(errors="surrogateescape"), size, _number(header[100:108]), _KINDS.get(kind, ""))


def _number(field: bytes) -> int:
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        raise ArchiveError("a number in it can't be read") from None
