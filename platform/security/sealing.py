"""Seal short secrets with the platform's root key file.

AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce; a key for each purpose comes from the root by HKDF-SHA256
(RFC 5869), so that a value sealed for one column can't be opened in another. Layout: one version byte (1), nonce,
ciphertext with tag.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

from security.errors import UnsealError
from security.sources.keyfile import read_root

VERSION = b"\x01"
NONCE = 12
KEY = 32


def seal(plaintext: bytes, purpose: str) -> bytes:
    """Encrypt `plaintext` for `purpose` (a stable name such as `provisioning.serversecret.value`)."""
    nonce = os.urandom(NONCE)
    return VERSION + nonce + _cipher(_root_path(), purpose).encrypt(nonce, plaintext, purpose.encode())


def unseal(sealed: bytes, purpose: str) -> bytes:
    """Return the plaintext of `seal`, or raise `UnsealError`."""
    if sealed[:1] != VERSION or len(sealed) < 1 + NONCE + 16:
        raise UnsealError(f"A sealed value of {purpose} has an unknown form.")
    try:
        return _cipher(_root_path(), purpose).decrypt(sealed[1 : 1 + NONCE], sealed[1 + NONCE :], purpose.encode())
    except InvalidTag:
        raise UnsealError(f"A sealed value of {purpose} can't be opened with this root key.") from None


def _root_path() -> str:
    return str(settings.HEARTH["HEARTH_KEY_FILE"])


@lru_cache(maxsize=64)
def _cipher(path: str, purpose: str) -> AESGCM:
    return AESGCM(HKDF(algorithm=SHA256(), length=KEY, salt=None, info=purpose.encode()).derive(read_root(Path(path))))
