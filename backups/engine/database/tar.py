"""Looks into a tar stream while it passes: nothing of it is kept but what is asked for. Imports no Django.

Only what pg_basebackup writes: POSIX ustar headers, sizes in octal or, past 8 GiB, in base 256 (`tarCreateHeader` in
PostgreSQL's src/port/tar.c).
"""

from __future__ import annotations

BLOCK = 512
MANIFEST = "backup_manifest"
KEPT = 1 << 16


class TarError(Exception):
    """This is no tar stream, or it ended too early."""


class Watcher:
    """Takes a stream in pieces of any size. Keeps the end of the member `backup_manifest`."""

    def __init__(self) -> None:
        self.tail = bytearray()
        """The last 64 KiB of the manifest."""
        self.total = 0
        self._header = bytearray()
        self._skip = 0
        self._keep = 0
        self._ended = False

    def take(self, piece: bytes) -> None:
        """Look at the next piece. Raises `TarError`."""
        self.total += len(piece)
        view, at = memoryview(piece), 0
        while at < len(view) and not self._ended:
            if self._skip:
                step = min(self._skip, len(view) - at)
                self._keep_some(view[at : at + min(step, self._keep)])
                self._skip -= step
            else:
                step = min(BLOCK - len(self._header), len(view) - at)
                self._header += view[at : at + step]
                if len(self._header) == BLOCK:
                    self._member()
            at += step

    def finish(self) -> bytes:
        """Return the manifest's end. Raises `TarError` where the stream was cut or has no manifest."""
        if not self._ended or not self.tail:
            raise TarError("The base backup ended too early, or without its manifest. It is begun anew.")
        return bytes(self.tail)

    def _member(self) -> None:
        header, self._header = bytes(self._header), bytearray()
        if header == bytes(BLOCK):
            self._ended = True
            return
        if header[257:262] != b"ustar":
            raise TarError("What pg_basebackup sends is no tar stream. It is begun anew.")
        size = _size(header[124:136])
        self._skip = (size + BLOCK - 1) // BLOCK * BLOCK
        self._keep = size if header[:100].rstrip(b"\0") == MANIFEST.encode() else 0

    def _keep_some(self, view: memoryview) -> None:
        if len(view):
            self._keep -= len(view)
            self.tail += view
            del self.tail[:-KEPT]


def _size(field: bytes) -> int:
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        raise TarError("A size in the base backup can't be read. It is begun anew.") from None
