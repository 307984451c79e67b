"""Seal short secrets: XChaCha20-Poly1305 under a data key of the owner's (or the platform's) KEK.

Layout: one version byte (2), the data key's id (16 bytes), a random 24-byte nonce, ciphertext with tag. The associated
data names what the value is for: a row's place (table, column, row, owner), or a purpose where there is no row.

Version 1 (one version byte, a 12-byte nonce, AES-256-GCM under a key that HKDF makes from the key file for each
purpose) is only opened; `manage.py keys reseal` brings every value to version 2.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.conf import settings
from django.views.decorators.debug import sensitive_variables

from security import xchacha
from security.binding import bind
from security.errors import KeyGone, UnsealError, WrongKey
from security.keyring import deks
from security.models import PLATFORM
from security.sources.keyfile import derive, read_root

OLD, VERSION = b"\x01", b"\x02"
OLD_NONCE = 12
HEAD = 1 + 16


@dataclass(frozen=True)
class Place:
    """Where a sealed value lies. A value copied to any other place does not open there."""

    table: str
    column: str
    row: tuple[str, ...]
    owner: uuid.UUID = PLATFORM

    @property
    def purpose(self) -> str:
        """The name that version 1 was bound to."""
        return f"{self.table}.{self.column}"

    def __str__(self) -> str:
        return f"{self.purpose} of row {'/'.join(self.row)}"


@sensitive_variables()
def seal(plaintext: bytes, purpose: str) -> bytes:
    """Encrypt `plaintext` for `purpose`, a stable name such as `accounts.totp`, where there is no row to bind it to."""
    return _seal(plaintext, _purpose_context(purpose), bind("hearth sealed purpose v2", purpose))


def unseal(sealed: bytes, purpose: str) -> bytes:
    """Return the plaintext of `seal`, or raise `UnsealError`."""
    if sealed[:1] == OLD:
        return _unseal_old(sealed, purpose, purpose)
    return _unseal(sealed, _purpose_context(purpose), bind("hearth sealed purpose v2", purpose), purpose)


@sensitive_variables()
def seal_at(plaintext: bytes, place: Place) -> bytes:
    """Encrypt `plaintext` for one column of one row."""
    return _seal(plaintext, _column_context(place), _binding(place))


def unseal_at(sealed: bytes, place: Place) -> bytes:
    """Return the plaintext of `seal_at`, or raise `UnsealError`."""
    if sealed[:1] == OLD:
        return _unseal_old(sealed, place.purpose, str(place))
    return _unseal(sealed, _column_context(place), _binding(place), str(place))


@sensitive_variables()
def _seal(plaintext: bytes, context: deks.Context, aad: bytes) -> bytes:
    identity, key = deks.shared_data_key(context)
    with key:
        return VERSION + identity.bytes + xchacha.seal_box(key.value, plaintext, identity.bytes + aad)


def _unseal(sealed: bytes, context: deks.Context, aad: bytes, name: str) -> bytes:
    if sealed[:1] != VERSION or len(sealed) < HEAD + xchacha.NONCE + xchacha.TAG:
        raise UnsealError(f"A sealed value of {name} has an unknown form.")
    identity = uuid.UUID(bytes=bytes(sealed[1:HEAD]))
    try:
        with deks.open_data_key(identity, context) as key:
            return xchacha.open_box(key.value, sealed[HEAD:], identity.bytes + aad)
    except (InvalidTag, KeyGone, WrongKey) as error:
        reason = "it was changed, or it belongs to another row" if isinstance(error, InvalidTag) else str(error)
        raise UnsealError(f"The sealed value of {name} can't be opened: {reason}. Nothing was changed.") from None


def _unseal_old(sealed: bytes, purpose: str, name: str) -> bytes:
    nonce, box = sealed[1 : 1 + OLD_NONCE], sealed[1 + OLD_NONCE :]
    if len(box) < xchacha.TAG:
        raise UnsealError(f"A sealed value of {name} has an unknown form.")
    try:
        with derive(read_root(Path(settings.HEARTH["HEARTH_KEY_FILE"])), purpose.encode()) as key:
            return AESGCM(key.value).decrypt(nonce, box, purpose.encode())
    except InvalidTag:
        raise UnsealError(f"A sealed value of {name} can't be opened with this root key.") from None


def _binding(place: Place) -> bytes:
    return bind("hearth sealed column v2", place.table, place.column, place.owner, len(place.row), *place.row)


def _column_context(place: Place) -> deks.Context:
    return deks.Context(place.owner, f"column:{place.purpose}")


def _purpose_context(purpose: str) -> deks.Context:
    return deks.Context(PLATFORM, f"purpose:{purpose}")
