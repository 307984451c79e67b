"""Streams to paths: a file appears under its name only when it is whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from security.durable import sync_folder
from security.streams.chunks import Sealer
from security.streams.ciphers import Bytes, Cipher
from security.streams.context import Context, DataKey
from security.streams.flow import Keys, opened, sealed
from security.streams.pieces import FileSource, Readable, write_all

UNFINISHED = ".unfinished"  # what a killed process may leave; it can always be deleted


def encrypt_to_path(source: Readable, path: Path, key: DataKey, context: Context, cipher: Cipher) -> int:
    """Encrypt the file `source` to `path` (mode 0600, on disk before it returns); return its size in bytes."""
    return _write(path, sealed(FileSource(source), Sealer(key, context, cipher)))


def decrypt_to_path(source: Readable, path: Path, key: Keys, context: Context) -> int:
    """Decrypt the file `source` to `path`; return its size in bytes.

    The plaintext is written beside `path` under another name and gets its own only when the final chunk was right.
    After an error nothing of it is left and what was at `path` before is untouched. Raises `StreamError`.
    """
    return _write(path, opened(FileSource(source), key, context))


def _write(path: Path, chunks: Iterator[Bytes]) -> int:
    handle, name = tempfile.mkstemp(UNFINISHED, f".{path.name[:64]}-", path.parent)
    try:
        total = 0
        with os.fdopen(handle, "wb", buffering=0) as file:
            for chunk in chunks:
                write_all(file, memoryview(chunk))
                total += len(chunk)
            os.fsync(handle)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise
    sync_folder(path.parent)
    return total
