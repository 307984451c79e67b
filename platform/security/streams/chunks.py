"""Seal and open single chunks. The chunk's index and whether it is the last are part of its nonce.

This is the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár: "Online Authenticated-Encryption and its
Nonce-Reuse Misuse-Resistance", CRYPTO 2015). The final chunk is always shorter than the others, so that neither side
has to look ahead: a stream of whole chunks ends with an empty one.
"""

from __future__ import annotations

import itertools
import struct

from cryptography.exceptions import InvalidTag

from security.streams.ciphers import TAG_SIZE, Bytes, Cipher
from security.streams.context import Context, DataKey
from security.streams.errors import Corrupted, TooLong, Truncated
from security.streams.header import CHUNK_SIZE, SEALED_SIZE, Header, new_header, open_header

MAX_CHUNKS = 1 << 32  # what the 4-byte counter can number: 4 PiB
_PLACE = struct.Struct(">IB")  # index, 1 for the final chunk


class Sealer:
    """Seals the chunks of one new stream in their order.

    No index is ever used twice, not even after a failure or from two threads: that would give the key away.
    """

    def __init__(self, key: DataKey, context: Context, cipher: Cipher) -> None:
        self.name = str(context)
        self.header, schedule = new_header(key, context, cipher)
        self._associated = self.header + context.encode()
        self._aead, self._prefix = schedule.aead(cipher)
        self._indexes = itertools.count()
        self._finished = False

    def seal_into(self, data: Bytes, buf: Bytes) -> None:
        """Encrypt the next chunk into `buf`, 16 bytes longer; a chunk shorter than 1 MiB is the final one.

        Raises `TooLong` when the counter is used up.
        """
        size = len(data)
        if self._finished or size > CHUNK_SIZE:
            raise ValueError(f"{self.name}: a chunk after the final one, or of {size} bytes, can't be encrypted.")
        index = next(self._indexes)
        if index >= MAX_CHUNKS:
            raise TooLong(
                self.name, f"it needs more than {MAX_CHUNKS} chunks. It has no end, so it can't be read back."
            )
        self._finished = final = size < CHUNK_SIZE
        self._aead.encrypt_into(self._prefix + _PLACE.pack(index, final), data, self._associated, buf)


class Opener:
    """Opens the chunks of one stream, in any order. Its header was found right for this key and object."""

    def __init__(self, header: Header, key: DataKey, context: Context) -> None:
        self.name = str(context)
        self._associated = header.raw + context.encode()
        self._aead, self._prefix = open_header(header, key, context).aead(header.cipher)

    def open_into(self, index: int, sealed: Bytes, buf: Bytes) -> None:
        """Decrypt chunk `index` into `buf`, 16 bytes shorter. Less than a whole chunk must be the final one.

        Raises `Truncated`, `Corrupted` or `TooLong`; then `buf` holds zeros.
        """
        size = len(sealed)
        if size < TAG_SIZE:
            raise self.cut(index)
        if index >= MAX_CHUNKS:
            raise TooLong(self.name, f"it has more than {MAX_CHUNKS} chunks, which no stream can have.")
        final = size < SEALED_SIZE
        try:
            self._aead.decrypt_into(self._prefix + _PLACE.pack(index, final), sealed, self._associated, buf)
        except InvalidTag:
            # Whatever the library left there is not authentic, and nobody may see it.
            memoryview(buf)[:] = bytes(len(buf))
            raise self._foreign(index, final) from None

    def cut(self, index: int) -> Truncated:
        """Return the error for a stream that stops before chunk `index` is there."""
        return Truncated(
            self.name,
            f"it stops at chunk {index}, before its end. What was read so far is only a part. Fetch it again, or from "
            "another copy.",
        )

    def _foreign(self, index: int, final: bool) -> Corrupted:
        how = "was cut short or changed" if final else "was changed, or belongs to another place or stream"
        return Corrupted(
            self.name, f"chunk {index} {how}. Nothing of this chunk was decrypted. Restore from another copy."
        )
