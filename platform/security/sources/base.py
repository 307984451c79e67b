"""The protocol of a key source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from security.secret import Key


class KeySource(Protocol):
    """Holds root keys and wraps 32-byte keys with them. Root keys are named by ids that begin with the source's kind.

    Every method raises `KeySourceError` (or one of its kinds) where the source can't be used. `unwrap` raises
    `WrongKey` where the bytes were changed or the associated data is another one.
    """

    kind: str

    def roots(self) -> list[str]:
        """Return the ids of the root keys that it holds, the first one it would use first."""

    def create(self) -> str:
        """Make another root key and return its id."""

    def wrap(self, root: str, key: Key, aad: bytes) -> bytes:
        """Return `key` encrypted by the root key and bound to `aad`."""

    def unwrap(self, root: str, wrapped: bytes, aad: bytes) -> Key:
        """Return the key that `wrap` took."""

    def describe(self) -> Mapping[str, str]:
        """Return what a person may know about it: places, never secrets."""
