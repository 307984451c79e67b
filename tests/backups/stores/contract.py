"""What the contract's tests need of each kind of store."""

from __future__ import annotations

import random
from collections.abc import Iterator

from backups.engine.stores.base import Store

MIB = 1 << 20


def read(store: Store, name: str, **part: int) -> bytes:
    return b"".join(store.get(name, **part))


def names(store: Store, prefix: str = "") -> list[str]:
    return [each.name for each in store.listing(prefix)]


def noise(size: int, seed: int = 1) -> bytes:
    """Return bytes that are the same each time and compress badly."""
    return random.Random(seed).randbytes(size)


def in_pieces(data: bytes, size: int) -> Iterator[memoryview]:
    """Yield the data in one buffer that is used again and again, as the streams of backups do."""
    buffer = bytearray(size)
    for begin in range(0, len(data), size):
        part = data[begin : begin + size]
        buffer[: len(part)] = part
        yield memoryview(buffer)[: len(part)]
