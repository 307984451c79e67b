"""The two ciphers behind one shape: 12-byte nonces that end in a chunk's place.

XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) is HChaCha20 once for each stream and then ChaCha20-Poly1305
(RFC 8439) for each chunk, so that it runs at OpenSSL's speed. AES-256-GCM is RFC 5116 and NIST SP 800-38D.
"""

from __future__ import annotations

import enum
from typing import Protocol

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from security.xchacha import hchacha20

TAG_SIZE = 16

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


def start(cipher: Cipher, key: Bytes, prefix: Bytes) -> tuple[Aead, bytes]:
    """Return the chunk cipher and the first 7 bytes of its nonces, for a stream's key and nonce prefix."""
    if cipher is Cipher.AES_256_GCM:
        return AESGCM(key), bytes(prefix)
    return ChaCha20Poly1305(hchacha20(bytes(key), bytes(prefix[:16]))), bytes(4) + bytes(prefix[16:])
