"""The two ciphers behind one shape: 12-byte nonces that end in a chunk's place.

XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) is HChaCha20 once for each stream and then ChaCha20-Poly1305
(RFC 8439) for each chunk, so that it runs at OpenSSL's speed. AES-256-GCM is RFC 5116 and NIST SP 800-38D.
"""

from __future__ import annotations

import enum
import struct
from typing import Protocol

from cryptography.hazmat.primitives.ciphers import Cipher as RawCipher
from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

TAG_SIZE = 16
_WORD = 0xFFFFFFFF
_CONSTANTS = struct.unpack("<4I", b"expand 32-byte k")

Bytes = bytes | bytearray | memoryview


class Cipher(enum.IntEnum):
    """The cipher's number in a header. Database content takes the first, files the second."""

    XCHACHA20_POLY1305 = 1
    AES_256_GCM = 2


class Aead(Protocol):
    """What both of the library's classes offer; neither allocates."""

    def encrypt_into(self, nonce: Bytes, data: Bytes, associated_data: Bytes | None, buf: Bytes) -> int: ...

    def decrypt_into(self, nonce: Bytes, data: Bytes, associated_data: Bytes | None, buf: Bytes) -> int: ...


# The random start of a nonce; the other five bytes are the chunk's place.
PREFIX_SIZE = {Cipher.XCHACHA20_POLY1305: 19, Cipher.AES_256_GCM: 7}


def hchacha20(key: Bytes, nonce: Bytes) -> bytes:
    """Return the 32-byte subkey of a 32-byte key and a 16-byte nonce (draft-irtf-cfrg-xchacha-03, section 2.2).

    A block of ChaCha20's key stream is the permuted state plus the first one, and HChaCha20 is the first and last
    rows of the permuted state. Those rows of the first state are public (constants and nonce), so they can be taken
    off again: one call to OpenSSL instead of twenty rounds in Python.
    """
    encryptor = RawCipher(algorithms.ChaCha20(bytes(key), bytes(nonce)), mode=None).encryptor()
    block = struct.unpack("<16I", encryptor.update(bytes(64)))
    first = (*_CONSTANTS, *struct.unpack("<4I", nonce))
    rows = zip((*block[:4], *block[12:]), first, strict=True)
    return struct.pack("<8I", *((mixed - start) & _WORD for mixed, start in rows))


def start(cipher: Cipher, key: Bytes, prefix: Bytes) -> tuple[Aead, bytes]:
    """Return the chunk cipher and the first 7 bytes of its nonces, for a stream's key and nonce prefix."""
    if cipher is Cipher.AES_256_GCM:
        return AESGCM(key), bytes(prefix)
    return ChaCha20Poly1305(hchacha20(key, prefix[:16])), bytes(4) + bytes(prefix[16:])
