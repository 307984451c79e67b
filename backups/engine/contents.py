"""Whether what is inside an object is what it should be: base backups' archives, segments of WAL. Imports no Django."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import google_crc32c
import msgspec
import zstandard

from backups.engine.archive import ArchiveError, members
from backups.engine.coverage import Piece
from backups.engine.names import SEGMENT_SIZE

PAGE = 8192
MANIFEST = "backup_manifest"
_LARGEST_MANIFEST = 1 << 30
_READ = 1 << 20
_LITTLE = 4096
_PAGE = struct.Struct("<HHIQI")
"""XLogPageHeaderData: magic, info, timeline, address, remaining length (PostgreSQL's xlog_internal.h)."""
_LONG = struct.Struct("<QII")
"""Behind it, at byte 24 of a segment's first page: system identifier, segment's and page's size."""
_IS_LONG = 0x0002
_NOT_LISTED = {MANIFEST, "postgresql.auto.conf", "standby.signal", "recovery.signal"}
_CHECKSUM = b'"Manifest-Checksum"'


class ContentError(Exception):
    """What is in an object is not right. The text is for a person."""


def unpacked(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """Yield the plain bytes of a zstd frame that comes in pieces. Raises `ContentError`."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
    for piece in pieces:
        # A little at a time: 4 KiB can be 128 MiB of zeros.
        for at in range(0, len(piece), _LITTLE):
            try:
                found = unpacker.decompress(piece[at : at + _LITTLE])
            except zstandard.ZstdError as error:
                raise ContentError(f"Its compressed stream is broken ({error}).") from None
            if found:
                yield found
    if not unpacker.eof or unpacker.unused_data:
        raise ContentError("Its compressed stream has no end, or more than one.")


class Unpacked(io.RawIOBase):
    """Reads the plain bytes of a zstd frame that comes in pieces."""

    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        self._plain = unpacked(pieces)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any, /) -> int:
        self._rest = self._rest or memoryview(next(self._plain, b""))
        view = memoryview(target).cast("B")
        size = min(len(view), len(self._rest))
        view[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def check_base(pieces: Iterable[bytes | memoryview], system: str) -> tuple[int, int]:
    """Read a base backup's archive against the manifest in it; return its files and bytes. Raises `ContentError`.

    Each file's size and CRC-32C, and that none is missing or too many, as pg_verifybackup does.
    """
    found: dict[str, tuple[int, int]] = {}
    listed, crc = bytearray(), 0
    try:
        for member, piece in members(unpacked(pieces)):
            name = member.name.removeprefix("./")
            if member.kind != "file":
                continue
            if name == MANIFEST:
                check_manifest_size(member.size)
                listed += piece or b""
            elif piece is not None:
                crc = google_crc32c.extend(crc, bytes(piece))
            else:
                found[name], crc = (member.size, crc), 0
    except ArchiveError as error:
        raise ContentError(f"Its archive is broken: {error}.") from None
    check_files(found, bytes(listed), system)
    return len(found), sum(size for size, _ in found.values())


def check_manifest_size(size: int) -> None:
    """Raise `ContentError` for a manifest that would not fit into memory."""
    if size > _LARGEST_MANIFEST:
        raise ContentError("Its manifest is larger than one can be.")


def check_files(found: dict[str, tuple[int, int]], listed: bytes, system: str) -> None:
    """Compare files (name to size and CRC-32C) with the manifest that came with them. Raises `ContentError`."""
    _compare(found, _manifest(listed, system))


def check_wal(pieces: Iterable[bytes | memoryview], piece: Piece, system: str) -> None:
    """Check that an object holds just this stretch of this database's WAL, by its pages. Raises `ContentError`.

    `system` is its identifier; empty where nothing tells it.
    """
    stream = Unpacked(pieces)
    check_pages(b"".join(iter(lambda: stream.read(_READ), b"")), piece, system)


def check_pages(data: bytes, piece: Piece, system: str) -> None:
    """Check the same of WAL that was unpacked."""
    size = piece.end - piece.begin
    if len(data) != size:
        raise ContentError(f"It holds {len(data)} bytes of WAL, and its name says {size}.")
    for at in range(-piece.begin % PAGE, size - _PAGE.size + 1, PAGE):
        magic, info, timeline, address, _ = _PAGE.unpack_from(data, at)
        if magic == 0 and data[at:] == bytes(size - at):
            return  # pg_switch_wal() ended the segment early; what is behind it is sent as zeros
        place = piece.begin + at
        if magic >> 8 != 0xD1 or address != place or timeline > piece.timeline:
            raise ContentError(f"Its page at {at} is not that of {place:X} in the WAL of timeline {piece.timeline}.")
        if place % SEGMENT_SIZE == 0 and at + 40 <= size:
            _check_first(data, at, info, system)


def _check_first(data: bytes, at: int, info: int, system: str) -> None:
    identifier, segment, page = _LONG.unpack_from(data, at + 24)
    if not info & _IS_LONG or (str(identifier), segment, page) != (system or str(identifier), SEGMENT_SIZE, PAGE):
        raise ContentError(f"It is WAL of another database ({identifier}, and this one is {system}).")


class _Entry(msgspec.Struct):
    size: int = msgspec.field(name="Size")
    path: str = msgspec.field(name="Path", default="")
    encoded: str = msgspec.field(name="Encoded-Path", default="")
    algorithm: str = msgspec.field(name="Checksum-Algorithm", default="")
    checksum: str = msgspec.field(name="Checksum", default="")


class _Manifest(msgspec.Struct):
    files: list[_Entry] = msgspec.field(name="Files")
    checksum: str = msgspec.field(name="Manifest-Checksum")
    system: int | None = msgspec.field(name="System-Identifier", default=None)


def _manifest(data: bytes, system: str) -> dict[str, _Entry]:
    try:
        found = msgspec.json.decode(data, type=_Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ContentError(f"Its manifest can't be read ({error}).") from None
    if hashlib.sha256(data[: data.rfind(_CHECKSUM)]).hexdigest() != found.checksum:
        raise ContentError("Its manifest is not what PostgreSQL wrote.")
    if found.system is not None and str(found.system) != system:
        raise ContentError(f"It is of another database ({found.system}, and this one is {system}).")
    return {_path(each): each for each in found.files}


def _path(entry: _Entry) -> str:
    return bytes.fromhex(entry.encoded).decode("utf-8", "surrogateescape") if entry.encoded else entry.path


def _compare(found: dict[str, tuple[int, int]], listed: dict[str, _Entry]) -> None:
    for name, entry in listed.items():
        if name not in found:
            raise ContentError(f"{name} is missing in its archive.")
        size, crc = found[name]
        # PostgreSQL writes the CRC's bytes as they lie in memory.
        checked = entry.algorithm == "CRC32C"
        if size != entry.size or (checked and crc.to_bytes(4, "little").hex() != entry.checksum):
            raise ContentError(f"{name} in its archive is not what PostgreSQL wrote.")
    more = {name for name in found.keys() - listed.keys() - _NOT_LISTED if not name.startswith("pg_wal/")}
    if more:
        raise ContentError(f"{min(more)} is in its archive, and not in its manifest.")
