"""Places in PostgreSQL's write-ahead log: LSNs as numbers, and the names of its segments and history files.

Names are 24 hex digits: timeline, then the segment's number in two halves (PostgreSQL documentation, 28.6 "WAL
Internals"; `XLogFileName` in xlog_internal.h). Segments have 16 MiB.
"""

from __future__ import annotations

import re

from backups.engine.names import SEGMENT_SIZE

_EACH = 2**32 // SEGMENT_SIZE
_LSN = re.compile(r"([0-9A-F]{1,8})/([0-9A-F]{1,8})")
_NAME = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})")


def number(text: str) -> int:
    """Return an LSN such as `0/2000028` as a number of bytes. Raises `ValueError`."""
    found = _LSN.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no LSN.")
    return (int(found[1], 16) << 32) | int(found[2], 16)


def text(place: int) -> str:
    """Return the LSN as PostgreSQL writes it."""
    return f"{place >> 32:X}/{place & 0xFFFFFFFF:X}"


def begin_of(place: int) -> int:
    """Return where the segment begins that the byte at `place` is in."""
    return place - place % SEGMENT_SIZE


def name(timeline: int, place: int) -> str:
    """Return the name of the segment that the byte at `place` is in."""
    segment = place // SEGMENT_SIZE
    return f"{timeline:08X}{segment // _EACH:08X}{segment % _EACH:08X}"


def parse(name: str) -> tuple[int, int]:
    """Return timeline and first LSN of a segment's name. Raises `ValueError`."""
    found = _NAME.fullmatch(name)
    if found is None or int(found[3], 16) >= _EACH:
        raise ValueError(f"{name!r} is no WAL segment.")
    return int(found[1], 16), (int(found[2], 16) * _EACH + int(found[3], 16)) * SEGMENT_SIZE


def switches(history: str) -> dict[int, int]:
    """Return, of a timeline's history file, where each timeline before it was left: timeline to LSN."""
    found = {}
    for line in history.splitlines():
        words = line.split("#", 1)[0].split()
        if len(words) >= 2:
            found[int(words[0])] = number(words[1])
    return found
