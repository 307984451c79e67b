"""A homeserver's secrets: its signing key in Synapse's format, and random words. Imports no Django."""

from __future__ import annotations

import base64
import secrets
import string

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

RANDOM = ("macaroon", "registration", "form", "database", "jwt", "replication", "redis")


class KeyUnreadable(ValueError):
    """A signing key line is not in Synapse's format."""


def new_secrets() -> dict[str, str]:
    """Return the secrets of a new server, by the names that `ServerSpec.secrets` has."""
    return {"signing_key": new_signing_key()} | {name: secrets.token_urlsafe(36) for name in RANDOM}


def new_signing_key() -> str:
    """Return one line `ed25519 a_XXXX <unpadded base64 seed>`, as Synapse's own generator writes it."""
    version = "a_" + "".join(secrets.choice(string.ascii_letters) for _ in range(4))
    return f"ed25519 {version} {_unpadded(Ed25519PrivateKey.generate().private_bytes_raw())}"


def verify_key(line: str) -> tuple[str, str]:
    """Return key id (`ed25519:a_XXXX`) and public key (unpadded base64) of a signing key line."""
    try:
        algorithm, version, seed = line.split()
        raw = base64.b64decode(seed + "=" * (-len(seed) % 4), validate=True)
        public = Ed25519PrivateKey.from_private_bytes(raw).public_key()
    except ValueError:
        raise KeyUnreadable("The signing key is not one line `ed25519 <version> <base64>`.") from None
    if algorithm != "ed25519":
        raise KeyUnreadable(f"The signing key is of type {algorithm}, not ed25519.")
    return f"{algorithm}:{version}", _unpadded(public.public_bytes_raw())


def _unpadded(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii").rstrip("=")
