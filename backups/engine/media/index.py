"""Indexes of media: which files there were, and where their contents lie. Imports no Django.

    index = zstd( u32(n) ‖ msgpack of n bytes, again and again )      u32 is big-endian
    first message   [format, run, full, previous]                      previous: a run's id, or ""
    others          [files, gone]
    file            [path, size, mtime, hash, object, at, length, packed]
    last message    [files in all, gone in all]                        two numbers

`known` objects have the same frame: `[format, run]`, then `[objects, contents]` and two numbers.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import msgspec
import zstandard

from backups.engine.manifest import Ref
from backups.engine.media.errors import MediaError
from backups.engine.media.state import Content
from security.streams import DataKey

FORMAT = 1
_BLOCK = 1_000
_LARGEST = 16 * 2**20
_WINDOW = 1 << 27
T = TypeVar("T")


class File(msgspec.Struct, frozen=True, array_like=True):
    """One media file. `path` is below the media store; bytes; nanoseconds since 1970 of its last change."""

    path: str
    size: int
    mtime: int
    hash: bytes
    """Keyed BLAKE2b of its contents, 32 bytes."""
    object: str
    """Holds the contents, such as `media/<run>/000001`; empty for an empty file."""
    at: int
    """First byte in the object's plaintext."""
    length: int
    packed: bool
    """Whether these bytes are a zstd frame."""


class Head(msgspec.Struct, frozen=True, array_like=True):
    """Whose index this is."""

    format: int
    run: str
    full: bool
    previous: str


class Block(msgspec.Struct, frozen=True, array_like=True):
    """Files that are there, and paths that are no more."""

    files: tuple[File, ...]
    gone: tuple[str, ...] = ()


class _KnownHead(msgspec.Struct, frozen=True, array_like=True):
    format: int
    run: str


class _KnownBlock(msgspec.Struct, frozen=True, array_like=True):
    objects: tuple[Ref, ...]
    contents: tuple[tuple[bytes, int, str, int, int, bool], ...]


def write(head: Head, files: Iterable[File], gone: Iterable[str] = ()) -> Iterator[bytes]:
    """Yield an index in pieces."""
    return _framed(_messages(head, files, gone))


def read(pieces: Iterable[bytes | memoryview], name: str) -> Iterator[Head | Block]:
    """Yield the head of an index and then its blocks. Raises `MediaError`; what `pieces` raises passes through.

    Only when the iterator has ended without an error was it whole.
    """
    messages = _unframed(pieces, name)
    head = _decoded(next(messages, b""), Head, name)
    if head.format != FORMAT:
        raise _damaged(name, f"its format is {head.format}")
    yield head
    files = gone = 0
    last: bytes | None = None
    for message in messages:
        if last is not None:
            block = _decoded(last, Block, name)
            files, gone = files + len(block.files), gone + len(block.gone)
            yield block
        last = message
    if _decoded(last or b"", tuple[int, int], name) != (files, gone):
        raise _damaged(name, "its end is missing")


def known_key(name_key: bytes) -> DataKey:
    """Return the key of `known` objects, which the engine can open without Hearth."""
    secret = hmac.digest(name_key, b"hearth media known v1", "sha256")
    identity = hashlib.sha256(b"hearth media known id v1" + secret).digest()[:16]
    return DataKey(uuid.UUID(bytes=identity), secret)


def write_known(run: str, objects: Iterable[Ref], contents: Iterable[tuple[bytes, Content]]) -> Iterator[bytes]:
    """Yield what an engine that lost its state must know: objects, and which contents lie where in them."""

    def messages() -> Iterator[Any]:
        yield _KnownHead(FORMAT, run)
        counts = [0, 0]
        for refs in _blocks(objects):
            counts[0] += len(refs)
            yield _KnownBlock(refs, ())
        for some in _blocks(contents):
            counts[1] += len(some)
            yield _KnownBlock((), tuple((digest, *content) for digest, content in some))
        yield tuple(counts)

    return _framed(messages())


def read_known(
    pieces: Iterable[bytes | memoryview], name: str
) -> Iterator[tuple[list[Ref], list[tuple[bytes, Content]]]]:
    """Yield objects, and contents in them. Raises as `read` does."""
    messages = _unframed(pieces, name)
    if _decoded(next(messages, b""), _KnownHead, name).format != FORMAT:
        raise _damaged(name, "its format is another one")
    counts = [0, 0]
    last: bytes | None = None
    for message in messages:
        if last is not None:
            block = _decoded(last, _KnownBlock, name)
            counts = [counts[0] + len(block.objects), counts[1] + len(block.contents)]
            yield list(block.objects), [(each[0], Content(*each[1:])) for each in block.contents]
        last = message
    if list(_decoded(last or b"", tuple[int, int], name)) != counts:
        raise _damaged(name, "its end is missing")


def _messages(head: Head, files: Iterable[File], gone: Iterable[str]) -> Iterator[Any]:
    yield head
    counts = [0, 0]
    for some in _blocks(files):
        counts[0] += len(some)
        yield Block(some)
    for paths in _blocks(gone):
        counts[1] += len(paths)
        yield Block((), paths)
    yield tuple(counts)


def _blocks(values: Iterable[T]) -> Iterator[tuple[T, ...]]:
    some: list[T] = []
    for each in values:
        some.append(each)
        if len(some) == _BLOCK:
            yield tuple(some)
            some.clear()
    if some:
        yield tuple(some)


def _framed(messages: Iterable[Any]) -> Iterator[bytes]:
    encoder, packer = msgspec.msgpack.Encoder(), zstandard.ZstdCompressor(level=3).compressobj()
    for message in messages:
        data = encoder.encode(message)
        if piece := packer.compress(struct.pack(">I", len(data)) + data):
            yield piece
    yield packer.flush()


def _unframed(pieces: Iterable[bytes | memoryview], name: str) -> Iterator[bytes]:
    rest = bytearray()
    unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
    for piece in pieces:
        try:
            rest += unpacker.decompress(bytes(piece))
        except zstandard.ZstdError as error:
            raise _damaged(name, str(error)) from None
        at = 0
        while len(rest) - at >= 4:
            (size,) = struct.unpack_from(">I", rest, at)
            if size > _LARGEST:
                raise _damaged(name, "a message in it is too large")
            if len(rest) - at - 4 < size:
                break
            yield bytes(rest[at + 4 : at + 4 + size])
            at += 4 + size
        del rest[:at]
    if rest or not unpacker.eof or unpacker.unused_data:
        raise _damaged(name, "its end is missing")


def _decoded(message: bytes, kind: type[T], name: str) -> T:
    try:
        return msgspec.msgpack.decode(message, type=kind)
    except msgspec.DecodeError as error:
        raise _damaged(name, str(error)) from None


def _damaged(name: str, why: str) -> MediaError:
    return MediaError(f"The media index {name} is not right: {why}. Try another copy.", code="MediaDamaged")
