"""The 128 bytes before the chunks, and the keys that come from them (docs/backup-format.md).

A header tells which data key opens the stream, commits to that key, and is itself authenticated together with the
names of the object, before any chunk is read.
"""

from __future__ import annotations

import hmac
import os
import struct
import uuid
from dataclasses import dataclass

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from security.streams.ciphers import PREFIX_SIZE, TAG_SIZE, Aead, Bytes, Cipher, start
from security.streams.context import VERSION, Context, DataKey
from security.streams.errors import Truncated, UnknownFormat, WrongContext, WrongKey

MAGIC = b"HEARTHST"
CHUNK_SIZE = 1 << 20
SEALED_SIZE = CHUNK_SIZE + TAG_SIZE
HEADER_SIZE = 128
_FIXED = struct.Struct(">8sBBHI16s")  # magic, version, cipher, zero, chunk size, data key's id
_SALT_SIZE = 32
_UNSIGNED_SIZE = 96
_DERIVED_SIZE = 128


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header. It is not authenticated yet: `open_header` does that."""

    cipher: Cipher
    key_id: uuid.UUID
    raw: bytes

    @classmethod
    def parse(cls, raw: Bytes, name: str) -> Header:
        """Read the header of the object `name`. Raises `Truncated` or `UnknownFormat`."""
        raw = bytes(raw[:HEADER_SIZE])
        if raw[: len(MAGIC)] != MAGIC[: len(raw)]:
            raise UnknownFormat(name, "this is not an encrypted stream of Hearth's. Nothing was decrypted.")
        if len(raw) < HEADER_SIZE:
            raise Truncated(
                name, f"only {len(raw)} bytes are there, less than a header. Fetch it again or from a copy."
            )
        _, version, cipher, zero, chunk, key_id = _FIXED.unpack_from(raw)
        if version != VERSION or cipher not in set(Cipher) or zero != 0 or chunk != CHUNK_SIZE:
            raise UnknownFormat(
                name,
                f"format {version}, cipher {cipher}, chunk size {chunk} is unknown to this release (or the header was "
                "changed). Nothing was decrypted. Use a newer release, or another copy.",
            )
        return cls(Cipher(cipher), uuid.UUID(bytes=key_id), raw)


class Schedule:
    """All that HKDF-SHA256 (RFC 5869) makes of a data key for one stream. Its parts never show in a `repr`."""

    __slots__ = ("_derived",)

    def __init__(self, key: DataKey, salt: bytes, fixed: bytes) -> None:
        self._derived = HKDF(SHA256(), _DERIVED_SIZE, salt, fixed).derive(key.reveal())

    @property
    def commitment(self) -> bytes:
        return self._derived[:32]

    def header_tag(self, unsigned: bytes, names: bytes) -> bytes:
        """Return HMAC-SHA256 over the header up to here and the encoded context."""
        return hmac.digest(self._derived[32:64], unsigned + names, "sha256")

    def aead(self, cipher: Cipher) -> tuple[Aead, bytes]:
        """Return the chunk cipher and the first 7 bytes of its nonces."""
        return start(cipher, self._derived[64:96], self._derived[96 : 96 + PREFIX_SIZE[cipher]])


def new_header(key: DataKey, context: Context, cipher: Cipher) -> tuple[bytes, Schedule]:
    """Return a header with a fresh salt, and the keys that belong to it."""
    fixed = _FIXED.pack(MAGIC, VERSION, cipher, 0, CHUNK_SIZE, key.id.bytes)
    salt = os.urandom(_SALT_SIZE)
    schedule = Schedule(key, salt, fixed)
    unsigned = fixed + salt + schedule.commitment
    return unsigned + schedule.header_tag(unsigned, context.encode()), schedule


def open_header(header: Header, key: DataKey, context: Context) -> Schedule:
    """Return the keys of a stream whose header is right for this key and this object.

    Raises `WrongKey` or `WrongContext`.
    """
    raw, name = header.raw, str(context)
    if key.id != header.key_id:
        raise WrongKey(name, f"it was encrypted with data key {header.key_id}, not {key.id}. Nothing was decrypted.")
    schedule = Schedule(key, raw[32:64], raw[:32])
    if not hmac.compare_digest(schedule.commitment, raw[64:96]):
        raise WrongKey(
            name,
            f"data key {key.id} does not open it, or its header was changed. Nothing was decrypted. Try another copy.",
        )
    if not hmac.compare_digest(schedule.header_tag(raw[:_UNSIGNED_SIZE], context.encode()), raw[96:]):
        raise WrongContext(
            name,
            f"it is not this object of organisation {context.organisation or '-'}, server {context.server or '-'}, "
            f"restore point {context.restore_point or '-'}, or its header was changed. Nothing was decrypted. "
            "Another object may lie under this name: try another copy.",
        )
    return schedule
