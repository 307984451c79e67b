"""What a stream is bound to: the key that opens it and the names of the object it holds."""

from __future__ import annotations

import os
import struct
import uuid
from dataclasses import dataclass
from typing import NoReturn

from security.streams.errors import BadContext

KEY_SIZE = 32
VERSION = 1
NAME_LIMIT = 64  # bytes of UTF-8: room for a UUID, a slug or a timestamp
PATH_LIMIT = 1024  # the longest key that S3 takes


class DataKey:
    """A data-encryption key (DEK): an id that may be seen and 32 bytes that may not.

    It never shows its bytes, and refuses to be copied or pickled, so that it can't leave in a message or a log.
    """

    __slots__ = ("_secret", "id")

    def __init__(self, key_id: uuid.UUID, secret: bytes) -> None:
        self.id = key_id
        self._secret = bytes(secret)
        if len(secret) != KEY_SIZE:
            del secret  # a traceback may show local variables
            raise ValueError(f"Data key {key_id} must have {KEY_SIZE} bytes.")

    @classmethod
    def fresh(cls) -> DataKey:
        """Return a new random key with a new id."""
        return cls(uuid.uuid4(), os.urandom(KEY_SIZE))

    def reveal(self) -> bytes:
        """Return the 32 secret bytes, for wrapping and for deriving."""
        return self._secret

    def __repr__(self) -> str:
        return f"DataKey({self.id})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"Data key {self.id} is a secret and is never serialised.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The names that a stream's associated data carries; all must be given again to read it.

    `server` and `restore_point` may be empty for objects that belong to none. Names are compared byte by byte as
    UTF-8, without any normalisation. Raises `BadContext`.
    """

    organisation: str
    server: str = ""
    path: str
    restore_point: str = ""

    def __post_init__(self) -> None:
        self._check("organisation", self.organisation, 1, NAME_LIMIT)
        self._check("server", self.server, 0, NAME_LIMIT)
        self._check("path", self.path, 1, PATH_LIMIT)
        self._check("restore point", self.restore_point, 0, NAME_LIMIT)

    def __str__(self) -> str:
        return self.path

    def encode(self) -> bytes:
        """Return the canonical bytes: the format's version, then each name with its length before it."""
        names = (self.organisation, self.server, self.path, self.restore_point)
        raw = [name.encode() for name in names]
        return bytes([VERSION]) + b"".join(struct.pack(">H", len(each)) + each for each in raw)

    def _check(self, what: str, value: str, least: int, most: int) -> None:
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise BadContext(ascii(self.path), f"its {what} is not valid Unicode. Nothing was encrypted.") from None
        if not least <= size <= most:
            raise BadContext(
                ascii(self.path)[:80],
                f"its {what} has {size} bytes; {least} to {most} are allowed. Nothing was read or written.",
            )
