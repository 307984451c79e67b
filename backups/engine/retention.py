"""What of a server's backups is still needed: marks, over manifests alone. `expiry` sweeps. Imports no Django."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import msgspec

from backups.engine import names
from backups.engine.catalogue import Catalogue
from backups.engine.coverage import Coverage, Piece, piece_of
from backups.engine.database import lsn
from backups.engine.manifest import Moment, Point, Ref
from backups.engine.names import SEGMENT_SIZE
from backups.engine.verify import media_below

LEAST_DAYS = 30
UNNAMED = timedelta(hours=48)
"""So long an object may wait for a manifest to name it."""
UNFINISHED = timedelta(days=14)
"""So long the parts of a restore point may wait for the rest: the first run over large media takes days."""
WHOLE = timedelta(hours=24)
"""After which pieces of a segment go when the whole segment is stored."""


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How long backups are kept. Raises `ValueError` below 30 days."""

    days: int = LEAST_DAYS
    """Every restore point is kept for so long."""
    window_days: int = 7
    """Any second of so many days can be restored."""
    weeks: int = 0
    """The newest restore point of each of so many weeks."""
    months: int = 0
    promised: frozenset[str] = frozenset()
    """Restore points that are kept whatever the days say: they were promised for longer when they were made."""

    def __post_init__(self) -> None:
        if self.days < LEAST_DAYS:
            raise ValueError(f"Backups are kept for {LEAST_DAYS} days at least, and {self.days} were asked for.")
        if not 0 < self.window_days <= self.days or min(self.weeks, self.months) < 0:
            raise ValueError("The window is between a day and the days that backups are kept.")

    @property
    def longest(self) -> timedelta:
        return timedelta(days=max(self.days, 7 * self.weeks, 31 * self.months))


@dataclass(kw_only=True)
class Plan:
    """What is needed and what is not."""

    points: set[str] = field(default_factory=set)
    """Restore points that are kept."""
    needed: set[str] = field(default_factory=set)
    """Names of objects."""
    unneeded: set[str] = field(default_factory=set)
    blocked: list[str] = field(default_factory=list)
    """Why more is kept than the policy asks for: manifests that can't be read."""


def plan(catalogue: Catalogue, retention: Retention, now: datetime) -> Plan:
    """Mark what restore points and the window need. What is not known to be unneeded is needed."""
    marking = _Marking(catalogue, retention, now)
    marking.points()
    marking.lines()
    marking.media()
    marking.unfinished()
    found = marking.plan
    found.unneeded = {each for each in catalogue.objects if _is_ours(each)} - found.needed
    return found


def kept_points(points: Iterable[Point], retention: Retention, now: datetime, ages: dict[str, datetime]) -> set[str]:
    """Return the restore points that the policy keeps. `ages` says when each was made, by the latest clock."""
    found, seen = set[str](), set[tuple[str, str]]()
    for point in sorted(points, key=lambda each: ages[each.id], reverse=True):
        made = ages[point.id]
        age = now - made
        # A copy in another store is made later than what it is a copy of, which counts for its age alone.
        told = max(point.at, names.time_of(point.id))
        week, month = f"{told:%G-%V}", f"{told:%Y-%m}"
        if age <= timedelta(days=retention.days) or point.id in retention.promised:
            found.add(point.id)
        if age <= timedelta(days=7 * retention.weeks) and ("week", week) not in seen:
            found.add(point.id)
        if age <= timedelta(days=31 * retention.months) and ("month", month) not in seen:
            found.add(point.id)
        seen |= {("week", week), ("month", month)}
    return found


class _Marking:
    def __init__(self, catalogue: Catalogue, retention: Retention, now: datetime) -> None:
        self.plan = Plan()
        self._catalogue = catalogue
        self._retention = retention
        self._now = now
        self._begin = now - timedelta(days=retention.window_days)
        self._media: dict[str, Ref] = {}
        self._all_lines = False
        self._all_media = False
        self._whole_lines = set[str]()

    def points(self) -> None:
        """Keep what the policy says, the base of each line's window, and always the newest whole one."""
        points = self._catalogue.points
        ages = {key: self._made(names.point(key), point.at) for key, point in points.items()}
        kept = kept_points(points.values(), self._retention, self._now, ages)
        coverages = {line: self._catalogue.coverage(line) for line in self._catalogue.lines()}
        whole = [each for each in points.values() if self._catalogue.is_whole(each, coverages[each.line])]
        for line in coverages:
            before = [each for each in whole if each.line == line and ages[each.id] <= self._begin]
            within = any(
                self._made(names.moment(line, each.id), each.at) >= self._begin for each in self._moments(line)
            )
            if before and within:
                kept.add(max(before, key=lambda each: ages[each.id]).id)
        kept |= {max(some, key=lambda each: ages[each]) for some in [[each.id for each in whole]] if some}
        for key in kept:
            point = points[key]
            self._need(names.point(key), point.base.name, point.configuration.name)
            self._need_media(point.media)
        self.plan.points = kept
        self._damaged_points()

    def lines(self) -> None:
        """Keep WAL from the base of the window on, and of older points what they need to become consistent."""
        lines = self._catalogue.lines()
        young = {name.split("/")[1] for name in self._catalogue.objects if self._is_young(name) and _is_line(name)}
        for name in self._catalogue.damaged:
            if "/moments/" in name and not self._is_over(name):
                self._whole_lines.add(name.split("/")[1])
                self._all_media = True
                self._block(name)
        for line in lines:
            points = [each for key, each in self._catalogue.points.items() if key in self.plan.points]
            mine = [each for each in points if each.line == line]
            active = line in young or line == lines[-1]
            if self._all_lines or line in self._whole_lines or (active and not mine):
                self._need(*(each for each in self._catalogue.objects if each.startswith(f"{names.LINES}{line}/")))
                for moment in self._moments(line):
                    self._need_media(moment.media)
            elif mine:
                self._line(line, mine, active=active)

    def media(self) -> None:
        """Keep what indexes need that points, moments or young runs name; all of it where one can't be read."""
        newest = max(self._catalogue.runs, default="")
        for key, run in self._catalogue.runs.items():
            name = names.media_run(key)
            if key == newest or self._is_young(name) or self._now - run.at < UNNAMED:
                self._mark_media(name)
        for ref in self._media.values():
            self._mark_media(ref.name)
        for name in self._catalogue.damaged:
            if name.startswith(names.MEDIA_RUNS) and (self._is_young(name) or name > names.media_run(newest)):
                self._all_media = True
                self._block(name)
        if self._all_media:
            media = (names.MEDIA, names.MEDIA_RUNS)
            self._need(*(each for each in self._catalogue.objects if each.startswith(media)))

    def unfinished(self) -> None:
        """Keep what may be on its way: young objects, and the parts of restore points that have no manifest yet."""
        for name in self._catalogue.objects:
            identity = name.split("/")[1] if name.startswith(names.PARTS) else ""
            waiting = identity and names.point(identity) not in self._catalogue.objects
            if self._is_young(name) or (waiting and self._now - self._made(name) < UNFINISHED):
                self._need(name)

    def _line(self, line: str, points: list[Point], *, active: bool) -> None:
        coverage = self._catalogue.coverage(line)
        pieces = [each for each in map(piece_of, self._wal(line)) if each is not None]
        base = self._window_base(line, points, active=active)
        ends = [(lsn.begin_of(lsn.number(each.begin)), lsn.number(each.end)) for each in points]
        needed = {each.name for each in pieces if any(each.end > begin and each.begin < end for begin, end in ends)}
        if base is not None:
            begin = lsn.begin_of(lsn.number(base.begin))
            needed |= {each.name for each in pieces if each.end > begin}
        needed -= {each.name for each in pieces if self._is_superseded(each, coverage)}
        self._need(*needed, *(each for each in self._wal(line) if each.endswith(".history")))
        before: Moment | None = None
        for moment in self._moments(line):
            name = names.moment(line, moment.id)
            within = base is not None and self._made(name, moment.at) >= self._begin
            if within and before is not None:
                self._need(names.moment(line, before.id))
                self._need_media(before.media)
            if within or any(ref.name in needed for ref in moment.wal):
                self._need(name)
            if within:
                self._need_media(moment.media)
            before = moment

    def _window_base(self, line: str, points: list[Point], *, active: bool) -> Point | None:
        """Return the point where the line's part of the window begins; None where no second of it is in the window."""
        coverage = self._catalogue.coverage(line)
        whole = [each for each in points if self._catalogue.is_whole(each, coverage)] or points
        ordered = sorted(whole, key=lambda each: self._made(names.point(each.id), each.at))
        newest = max((self._made(names.moment(line, each.id), each.at) for each in self._moments(line)), default=None)
        if not active and (newest is None or newest < self._begin):
            return None
        before = [each for each in ordered if self._made(names.point(each.id), each.at) <= self._begin]
        return before[-1] if before else ordered[0]

    def _is_superseded(self, piece: Piece, coverage: Coverage) -> bool:
        """Return whether a piece's whole segment is stored, for a day."""
        if piece.end - piece.begin == SEGMENT_SIZE:
            return False
        begin = lsn.begin_of(piece.begin)
        whole = [each for each in coverage.from_(begin, begin + SEGMENT_SIZE).pieces if each.name != piece.name]
        over = [each for each in whole if each.begin == begin and each.end == begin + SEGMENT_SIZE]
        return any(each.timeline == piece.timeline and self._now - self._made(each.name) > WHOLE for each in over)

    def _mark_media(self, name: str) -> None:
        if name in self.plan.needed:
            return
        found = media_below(self._catalogue, name)
        self._need(*found)
        for each in found:
            key = each.removeprefix(names.MEDIA_RUNS)
            if each.startswith(names.MEDIA_RUNS) and key not in self._catalogue.runs:
                # The chain goes on behind it, and nobody knows what it needs.
                self._all_media = True
                self._block(each)

    def _damaged_points(self) -> None:
        for name in self._catalogue.damaged:
            if name.startswith(names.POINTS) and not self._is_over(name):
                identity = name.removeprefix(names.POINTS)
                parts = (each for each in self._catalogue.objects if each.startswith(f"{names.PARTS}{identity}/"))
                self._need(name, *parts)
                self._all_lines = self._all_media = True
                self._block(name)

    def _block(self, name: str) -> None:
        self._need(name)
        if name not in self.plan.blocked:
            self.plan.blocked.append(name)

    def _is_over(self, name: str) -> bool:
        """Return whether a manifest is so old that nothing of its time is kept."""
        return self._now - self._made(name) > self._retention.longest + UNNAMED

    def _is_young(self, name: str) -> bool:
        return self._now - self._made(name) < UNNAMED

    def _made(self, name: str, told: datetime | None = None) -> datetime:
        """Return when an object was made, by the latest of the clocks that tell: one that is behind expires nothing."""
        there = self._catalogue.objects.get(name)
        times = [told, there.modified if there is not None else None, *_times_in(name)]
        known = [each for each in times if each is not None]
        return max(known) if known and (there is None or there.modified is not None or told) else self._now

    def _moments(self, line: str) -> list[Moment]:
        return self._catalogue.moments.get(line, [])

    def _wal(self, line: str) -> list[str]:
        prefix = f"{names.LINES}{line}/wal/"
        return [each for each in self._catalogue.objects if each.startswith(prefix)]

    def _need(self, *found: str) -> None:
        self.plan.needed.update(found)

    def _need_media(self, ref: Ref | None) -> None:
        if ref is not None:
            self._media[ref.name] = ref


def _is_ours(name: str) -> bool:
    return name.startswith((names.POINTS, names.PARTS, names.LINES, names.MEDIA, names.MEDIA_RUNS))


def _is_line(name: str) -> bool:
    return name.startswith(names.LINES)


def _times_in(name: str) -> Iterator[datetime]:
    for part in name.split("/"):
        with contextlib.suppress(ValueError):
            yield names.time_of(part)
