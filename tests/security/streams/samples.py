"""Keys, names and streams that the tests share, and every way to read a stream."""

from __future__ import annotations

import io
import random
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

from security.streams import (
    CHUNK_SIZE,
    HEADER_SIZE,
    SEALED_SIZE,
    Cipher,
    Context,
    DataKey,
    DecryptingReader,
    SeekableReader,
    decrypt,
    decrypt_to_path,
    encrypt,
)

ALICE = Context(
    organisation="6f1d8a52-alice",
    server="b1c6a7f0-server",
    path="media/ab/cd/picture",
    restore_point="2026-11-23T10:00Z",
)
KEY = DataKey(uuid.UUID(int=1), bytes(range(32)))
BOTH = list(Cipher)
SIZES = (0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 3 * CHUNK_SIZE)

Read = Callable[[bytes, DataKey, Context], bytes]


def plaintext(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def stream(data: bytes, cipher: Cipher, key: DataKey = KEY, context: Context = ALICE) -> bytes:
    return b"".join(bytes(piece) for piece in encrypt([data], key, context, cipher))


def parts(whole: bytes) -> tuple[bytes, list[bytes]]:
    """Return the header and the sealed chunks of a stream."""
    body = whole[HEADER_SIZE:]
    return whole[:HEADER_SIZE], [body[at : at + SEALED_SIZE] for at in range(0, len(body), SEALED_SIZE)]


def by_iterator(whole: bytes, key: DataKey, context: Context) -> bytes:
    return b"".join(bytes(piece) for piece in decrypt([whole], key, context))


def by_reader(whole: bytes, key: DataKey, context: Context) -> bytes:
    return DecryptingReader(io.BytesIO(whole), key, context).read()


def by_seeking(whole: bytes, key: DataKey, context: Context) -> bytes:
    return SeekableReader(io.BytesIO(whole), key, context).read()


def by_path(whole: bytes, key: DataKey, context: Context) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "restored"
        try:
            decrypt_to_path(io.BytesIO(whole), path, key, context)
        except BaseException:
            assert list(Path(name).iterdir()) == []  # nothing written half
            raise
        return path.read_bytes()


READERS: dict[str, Read] = {"iterator": by_iterator, "reader": by_reader, "seeking": by_seeking, "path": by_path}
