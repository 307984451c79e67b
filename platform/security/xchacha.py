"""XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) on OpenSSL's ChaCha20. Imports no Django.

HChaCha20 is the ChaCha20 block without its last addition, so it is had from one block of keystream by taking the known
part of the initial state away again: eight subtractions, at OpenSSL's speed and in constant time.
"""

from __future__ import annotations

import os
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

__all__ = ["NONCE", "TAG", "InvalidTag", "decrypt", "encrypt", "hchacha20", "open_box", "seal_box"]

NONCE = 24
TAG = 16
CONSTANTS = struct.unpack("<4I", b"expand 32-byte k")
BLOCK = bytes(64)


def hchacha20(key: bytes | bytearray, nonce: bytes) -> bytes:
    """Return the 32-byte subkey of a 32-byte key and a 16-byte nonce (section 2.2 of the draft)."""
    block = Cipher(ChaCha20(key, nonce), mode=None).encryptor().update(BLOCK)
    words = struct.unpack("<16I", block)
    initial = CONSTANTS + struct.unpack("<4I", nonce)
    return struct.pack("<8I", *[(a - b) & 0xFFFFFFFF for a, b in zip(words[:4] + words[12:], initial, strict=True)])


def encrypt(key: bytes | bytearray, nonce: bytes, plaintext: bytes | bytearray, aad: bytes) -> bytes:
    """Return ciphertext and tag; the nonce has 24 bytes and may be random."""
    return ChaCha20Poly1305(hchacha20(key, nonce[:16])).encrypt(bytes(4) + _rest(nonce), plaintext, aad)


def decrypt(key: bytes | bytearray, nonce: bytes, ciphertext: bytes, aad: bytes) -> bytes:
    """Return the plaintext, or raise `InvalidTag`."""
    return ChaCha20Poly1305(hchacha20(key, nonce[:16])).decrypt(bytes(4) + _rest(nonce), ciphertext, aad)


def seal_box(key: bytes | bytearray, plaintext: bytes | bytearray, aad: bytes) -> bytes:
    """Return a random nonce, the ciphertext and its tag in one."""
    nonce = os.urandom(NONCE)
    return nonce + encrypt(key, nonce, plaintext, aad)


def open_box(key: bytes | bytearray, box: bytes, aad: bytes) -> bytes:
    """Return what `seal_box` took, or raise `InvalidTag`, also for a box that is too short."""
    if len(box) < NONCE + TAG:
        raise InvalidTag
    return decrypt(key, box[:NONCE], box[NONCE:], aad)


def _rest(nonce: bytes) -> bytes:
    if len(nonce) != NONCE:
        raise ValueError(f"A nonce has {NONCE} bytes, not {len(nonce)}.")
    return nonce[16:]
