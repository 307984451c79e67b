"""Which stretch of a line's WAL a store has without a gap, and by which objects. Imports no Django.

Places are LSNs as numbers. Whole segments and pieces overlap; where timelines meet, the later one's segment begins with
the earlier one's bytes, so the later one is taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from backups.engine import names
from backups.engine.database import lsn
from backups.engine.names import SEGMENT_SIZE


@dataclass(frozen=True, slots=True)
class Piece:
    """One WAL object: LSNs `begin` up to `end` of a timeline."""

    name: str
    timeline: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """WAL without a gap, from a segment's first byte to `end`, and the objects that it is read from, in order."""

    end: int
    pieces: tuple[Piece, ...]


class Coverage:
    """The WAL objects of one line."""

    def __init__(self, found: Iterable[str]) -> None:
        """`found` are names of objects; those that are no WAL are left out."""
        self._segments: dict[int, list[Piece]] = {}
        for name in found:
            if (piece := piece_of(name)) is not None:
                self._segments.setdefault(piece.begin // SEGMENT_SIZE, []).append(piece)

    def from_(self, begin: int, end: int | None = None) -> Stretch:
        """Return what there is from the segment of `begin` on without a gap, up to `end` at least where it is given."""
        place, taken, timeline = lsn.begin_of(begin), list[Piece](), 0
        while (end is None or place < end) and (piece := self._at(place, timeline)) is not None:
            taken.append(piece)
            place, timeline = piece.end, piece.timeline
        return Stretch(place, tuple(taken))

    def gaps(self) -> list[tuple[int, int]]:
        """Return which stretches are missing between the line's first and last WAL."""
        found, place = list[tuple[int, int]](), None
        for piece in sorted((each for some in self._segments.values() for each in some), key=lambda each: each.begin):
            if place is not None and piece.begin > place:
                found.append((place, piece.begin))
            place = max(piece.end, place or 0)
        return found

    def _at(self, place: int, timeline: int) -> Piece | None:
        """Return the object that goes on furthest from `place`, of the latest timeline."""
        some = self._segments.get(place // SEGMENT_SIZE, ())
        fitting = [each for each in some if each.begin <= place < each.end and each.timeline >= timeline]
        return max(fitting, key=lambda each: (each.timeline, each.end, each.end - each.begin), default=None)


def piece_of(name: str) -> Piece | None:
    """Return what stretch of WAL an object is by its name, or None."""
    found = names.piece_of(name)
    if found is None:
        return None
    segment, begin, end = found
    try:
        timeline, place = lsn.parse(segment)
    except ValueError:
        return None
    if not 0 <= begin < end <= SEGMENT_SIZE:
        return None
    return Piece(name, timeline, place + begin, place + end)
