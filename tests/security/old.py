"""Values as version 1 sealed them."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.conf import settings

from security.sources.keyfile import derive, read_root


def seal_old(plaintext: bytes, purpose: str) -> bytes:
    """Return what version 1 wrote: its byte, a 12-byte nonce, AES-256-GCM under a key from the key file."""
    nonce = os.urandom(12)
    key = derive(read_root(Path(settings.HEARTH["HEARTH_KEY_FILE"])), purpose.encode())
    return b"\x01" + nonce + AESGCM(key.value).encrypt(nonce, plaintext, purpose.encode())
