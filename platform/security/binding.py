"""Associated data: the one way in which parts become bytes, so that no two lists of parts look the same."""

from __future__ import annotations

import struct
import uuid


def bind(label: str, *parts: str | int | bytes | uuid.UUID | None) -> bytes:
    """Return `label` and `parts`, each behind its length (four bytes, big-endian); None differs from the empty text."""
    return b"".join(_one(part) for part in (label, *parts))


def _one(part: str | int | bytes | uuid.UUID | None) -> bytes:
    if part is None:
        return b"\xff\xff\xff\xff"
    raw = part if isinstance(part, bytes) else str(part).encode()
    return struct.pack(">I", len(raw)) + raw
