"""Whether backups are what they were when they were stored. Imports no Django.

    look(catalogue)                     by listing and manifests alone: cheap, after each backup
    read(catalogue, vault, opens, ...)  every byte of restore points, WAL and media: weekly

A result names each object that is damaged, the restore points that it takes away, and what can still be restored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from backups.engine import names
from backups.engine.catalogue import Catalogue, Window
from backups.engine.coverage import Coverage, Piece, piece_of
from backups.engine.database import lsn
from backups.engine.manifest import Moment, Point, Ref


@dataclass(frozen=True, slots=True)
class Damage:
    """One object that is not what it should be."""

    name: str
    kind: str
    """`missing`, `size`, `mark`, `content`, `manifest`, `seal`, `chain`."""
    text: str
    points: tuple[str, ...] = ()
    """Restore points that can't be brought back whole without it, from this store."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What somebody else knows must be there: Hearth's database, the other store."""

    points: frozenset[str] = frozenset()
    moments: dict[str, int] = field(default_factory=dict)
    """By line, the number of its newest moment."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found."""

    objects: int
    """Looked at, or read."""
    bytes: int
    damage: tuple[Damage, ...]
    hit: tuple[str, ...]
    """Restore points that some damage concerns."""
    sound: tuple[str, ...]
    """Those that none of it concerns."""
    windows: tuple[Window, ...]
    """What can be restored without the damaged objects (media aside)."""
    full: bool
    hashed: bool = False
    """Whether media files were also compared with their keyed hashes."""

    @property
    def fine(self) -> bool:
        return not self.damage


_AT_REST = timedelta(hours=2)
"""Longer than between two moments."""
Found = dict[str, tuple[str, str]]
"""By object: kind and text."""


def look(
    catalogue: Catalogue,
    *,
    only: Iterable[str] | None = None,
    marks: bool = True,
    since: datetime | None = None,
    expected: Expected | None = None,
) -> Report:
    """Compare the listing with the manifests, and these with each other. Reads nothing more.

    `only` are restore points to look at; without it everything is. `marks`: this is the store whose marks the manifests
    have. `since` is where the window begins: before it, expiry leaves what restore points need. `expected` must be
    there too.
    """
    looking = _Looking(catalogue, marks=marks, since=since)
    points = chosen(catalogue, only)
    for point in points:
        looking.at_point(point)
    if only is None:
        for line in catalogue.lines():
            looking.at_line(line)
        looking.for_(expected or Expected())
    size = sum(each.size for each in catalogue.objects.values())
    return report(catalogue, points, looking.found, objects=len(catalogue.objects), size=size, full=False)


def report(
    catalogue: Catalogue,
    points: Iterable[Point],
    found: Found,
    *,
    objects: int,
    size: int,
    full: bool,
    hashed: bool = False,
) -> Report:
    """Say what damage means."""
    needs = {point.id: needed(catalogue, point) for point in points}
    damage = []
    for name, (kind, text) in sorted(found.items()):
        hit = tuple(key for key, wanted in needs.items() if name in wanted)
        if name.startswith(names.POINTS) and (key := name.removeprefix(names.POINTS)) not in hit:
            hit += (key,)
        damage.append(Damage(name, kind, text, hit))
    concerned = {key for each in damage for key in each.points}
    return Report(
        objects=objects,
        bytes=size,
        damage=tuple(damage),
        hit=tuple(sorted(concerned)),
        sound=tuple(sorted(needs.keys() - concerned)),
        windows=tuple(catalogue.without(found).windows()),
        full=full,
        hashed=hashed,
    )


def needed(catalogue: Catalogue, point: Point) -> set[str]:
    """Return the names of all objects that a restore to exactly this point reads, as far as they can be known."""
    found = {names.point(point.id), point.base.name, point.configuration.name}
    coverage = catalogue.coverage(point.line)
    found |= {each.name for each in coverage.from_(lsn.number(point.begin), lsn.number(point.end)).pieces}
    return found | media_of(catalogue, point.media)


def media_of(catalogue: Catalogue, ref: Ref | None) -> set[str]:
    """Return the names of all objects of a media index: manifests, indexes, contents; also of one that is missing."""
    return media_below(catalogue, ref.name) if ref is not None else set()


def media_below(catalogue: Catalogue, name: str) -> set[str]:
    """Return the same for the name of a media run's manifest."""
    found = set[str]()
    while name and name not in found:
        found.add(name)
        run = catalogue.runs.get(name.rsplit("/", 1)[-1])
        if run is None:
            break
        found |= {each.name for each in run.refs()}
        name = run.previous.name if run.chain and run.previous else ""
    return found


def chosen(catalogue: Catalogue, only: Iterable[str] | None) -> list[Point]:
    """Return these restore points, or all."""
    if only is None:
        return list(catalogue.points.values())
    return [catalogue.points[each] for each in only if each in catalogue.points]


class _Looking:
    def __init__(self, catalogue: Catalogue, *, marks: bool, since: datetime | None) -> None:
        self.found: Found = {name: ("manifest", text) for name, text in catalogue.damaged.items()}
        self._catalogue = catalogue
        self._marks = marks
        self._since = since
        self._runs = set[str]()

    def at_point(self, point: Point) -> None:
        for ref in (point.base, point.configuration):
            self._at(ref)
        begin, end = lsn.number(point.begin), lsn.number(point.end)
        reached = self._catalogue.coverage(point.line).from_(begin, end).end
        if reached < end:
            name = names.wal(point.line, lsn.name(point.timeline, reached))
            text = (
                f"WAL from {lsn.text(reached)} on is missing, which restore point {point.id} needs up to {point.end}."
            )
            self._tell(name, "missing", text)
            self._tell(names.point(point.id), "missing", text)
        self._at_media(point.media)

    def at_line(self, line: str) -> None:
        moments = self._catalogue.moments.get(line, [])
        coverage = self._catalogue.coverage(line)
        wanted = self._wanted(line)
        for before, moment in zip([None, *moments], moments, strict=False):
            over = self._since is not None and moment.at < self._since
            self._at_link(before, moment)
            for ref in moment.wal:
                piece = piece_of(ref.name)
                there = ref.name in self._catalogue.objects or piece is None
                # Gone may be a piece whose whole segment is stored, and what only seconds before the window need.
                if there or piece is None or not (self._is_whole(coverage, piece) or (over and not wanted(piece))):
                    self._at(ref)
            if not over:
                self._at_media(moment.media)

    def _is_whole(self, coverage: Coverage, piece: Piece) -> bool:
        return coverage.from_(piece.begin, piece.end).end >= piece.end

    def _wanted(self, line: str) -> Callable[[Piece], bool]:
        """Return what tells whether a restore point needs a piece of WAL, whatever the window."""
        points = [each for each in self._catalogue.points.values() if each.line == line]
        ends = [(lsn.begin_of(lsn.number(each.begin)), lsn.number(each.end)) for each in points]
        return lambda piece: any(begin < piece.end and piece.begin < end for begin, end in ends)

    def for_(self, expected: Expected) -> None:
        for identity in expected.points - self._catalogue.points.keys():
            self._tell(names.point(identity), "missing", f"The restore point {identity} is not in the store.")
        for line, number in expected.moments.items():
            newest = max((each.number for each in self._catalogue.moments.get(line, ())), default=-1)
            if newest < number:
                self._missing(line, newest + 1, number)

    def _at_link(self, before: Moment | None, moment: Moment) -> None:
        name = names.moment(moment.line, moment.id)
        if moment.number == (before.number if before else -1) + 1:
            there = names.moment(before.line, before.id) if before else ""
            if moment.previous != self._catalogue.digests.get(there, ""):
                self._tell(there or name, "chain", f"What {name} says of the moment before it is not what is stored.")
        elif before is not None and moment.number == before.number:
            self._tell(name, "chain", f"Two moments of line {moment.line} have the number {moment.number}.")
        elif self._since is None or moment.at - _AT_REST >= self._since:
            self._missing(moment.line, before.number + 1 if before else 0, moment.number - 1)

    def _missing(self, line: str, first: int, last: int) -> None:
        text = f"Moments {first} to {last} of line {line} are missing."
        self._tell(f"{names.LINES}{line}/moments/{first}-to-{last}", "missing", text)

    def _at_media(self, ref: Ref | None) -> None:
        """Look at a chain of media runs, as far as it was not looked at yet."""
        while ref is not None and ref.name not in self._runs:
            self._runs.add(ref.name)
            run = self._catalogue.runs.get(ref.name.rsplit("/", 1)[-1])
            if run is None:
                self._tell(ref.name, "missing", f"The manifest of a media run, {ref.name}, is missing.")
                return
            if self._catalogue.digests[ref.name] != ref.sha256:
                self._tell(ref.name, "content", f"The manifest {ref.name} is not the one that was stored.")
                return
            for each in run.refs():
                self._at(each)
            ref = run.previous if run.chain else None

    def _at(self, ref: Ref) -> None:
        there = self._catalogue.objects.get(ref.name)
        if there is None:
            self._tell(ref.name, "missing", f"{ref.name} is not in the store.")
        elif there.size != ref.size:
            self._tell(ref.name, "size", f"{ref.name} has {there.size} bytes, and {ref.size} were stored.")
        elif self._marks and ref.mark and there.mark and there.mark != ref.mark:
            self._tell(ref.name, "mark", f"{ref.name} was written again: its mark is another one.")

    def _tell(self, name: str, kind: str, text: str) -> None:
        self.found.setdefault(name, (kind, text))
