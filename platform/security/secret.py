"""A key in memory: not shown, not pickled, overwritten when it is no longer needed. Imports no Django."""

from __future__ import annotations

import os
from types import TracebackType
from typing import NoReturn, Self

KEY = 32
"""Bytes of every key."""


class Key:
    """Owns 32 bytes. `wipe` overwrites them. Python may have copied them elsewhere: this narrows, it can't promise."""

    __slots__ = ("_bytes",)

    def __init__(self, value: bytes | bytearray) -> None:
        if len(value) != KEY:
            raise ValueError(f"A key has {KEY} bytes, not {len(value)}.")
        self._bytes: bytearray | None = bytearray(value)

    @classmethod
    def fresh(cls) -> Self:
        """Return a new random key."""
        return cls(os.urandom(KEY))

    @property
    def value(self) -> bytearray:
        """The bytes themselves, not a copy. Raises `ValueError` after `wipe`: zeros must never encrypt anything."""
        if self._bytes is None:
            raise ValueError("This key was wiped from memory and can't be used any more. Open it again.")
        return self._bytes

    def copy(self) -> Key:
        return Key(self.value)

    def wipe(self) -> None:
        """Overwrite the bytes; idempotent."""
        if self._bytes is not None:
            self._bytes[:] = bytes(KEY)
            self._bytes = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wipe()

    def __repr__(self) -> str:
        return "<Key, not shown>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A key is never pickled or copied out of the process.")
