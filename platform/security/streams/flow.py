"""Whole streams as iterators: bytes in, bytes out, one chunk in memory at a time."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator

from security.streams.chunks import Opener, Sealer
from security.streams.ciphers import TAG_SIZE, Bytes, Cipher
from security.streams.context import Context, DataKey
from security.streams.header import CHUNK_SIZE, HEADER_SIZE, SEALED_SIZE, Header
from security.streams.pieces import Loan, Pieces, Source

# The key itself, or what finds it by the id that the header names.
Keys = DataKey | Callable[[uuid.UUID], DataKey]


def encrypt(pieces: Iterable[Bytes], key: DataKey, context: Context, cipher: Cipher) -> Iterator[memoryview]:
    """Yield the header and then each sealed chunk of `pieces` (bytes-like, of any size).

    Each view is valid only until the next one is asked for: write it away or copy it with `bytes`. Pieces of exactly
    1 MiB are encrypted without a copy. A stream that was not yielded to its end can't be read as whole.
    """
    return sealed(Pieces(pieces), Sealer(key, context, cipher))


def decrypt(pieces: Iterable[Bytes], key: Keys, context: Context) -> Iterator[memoryview]:
    """Yield the plaintext of each chunk, authenticated; raise `StreamError` at the first that is not right.

    Each view is valid only until the next one is asked for. Only when the iterator has ended without an error was
    the plaintext whole: keep nothing of it otherwise.
    """
    return opened(Pieces(pieces), key, context)


def sealed(source: Source, sealer: Sealer) -> Iterator[memoryview]:
    """Yield the stream of what `source` gives."""
    yield memoryview(sealer.header)
    loan = Loan(SEALED_SIZE)
    size = CHUNK_SIZE
    while size == CHUNK_SIZE:
        data = source.take(CHUNK_SIZE)
        size = len(data)
        chunk = loan.lend(size + TAG_SIZE)
        sealer.seal_into(data, chunk)
        data.release()
        yield chunk


def opened(source: Source, key: Keys, context: Context) -> Iterator[memoryview]:
    """Yield the plaintext of the stream that `source` gives."""
    opener = begin(source.take(HEADER_SIZE), key, context)
    loan = Loan(CHUNK_SIZE)
    size, index = SEALED_SIZE, 0
    while size == SEALED_SIZE:
        data = source.take(SEALED_SIZE)
        size = len(data)
        chunk = loan.lend(max(size - TAG_SIZE, 0))
        opener.open_into(index, data, chunk)
        data.release()
        index += 1
        if chunk:
            yield chunk


def begin(raw: Bytes, key: Keys, context: Context) -> Opener:
    """Return what opens the chunks behind this header. Raises `StreamError`."""
    header = Header.parse(raw, str(context))
    return Opener(header, key if isinstance(key, DataKey) else key(header.key_id), context)
