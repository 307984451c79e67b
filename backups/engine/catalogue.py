"""What can be restored, told by a store alone: its listing and the manifests in it, without a key. Imports no Django.

    found = Catalogue.read(store, organisation, server)
    found.windows()                 from which second to which, for each line
    found.need(to=datetime)         everything that a restore to it reads, in the order it is used
    found.without(names).windows()  what is left when these objects are lost

Works on any copy of the backups: the second store's catalogue is its own. `seals` checks that the engine wrote it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

from backups.engine import manifest, names
from backups.engine.coverage import Coverage, Piece, Stretch
from backups.engine.database import lsn
from backups.engine.manifest import ManifestError, MediaRun, Moment, Point, Ref, Sealed
from backups.engine.stores.base import NoSuchObject, Store, Stored, StoreError
from security.streams.flow import Keys

LARGEST = 256 * 2**20
"""Bytes of a manifest; one of a million media objects has half of it."""
WORKERS = 8
MOST_CHAIN = 10_000
T = TypeVar("T", bound=Sealed)


class NotRestorable(Exception):
    """Nothing in this store brings that moment back. The text is for a person."""


@dataclass(frozen=True, slots=True)
class Window:
    """Any second from `begin` to `end` can be restored. Both are the database's time."""

    line: str
    begin: datetime
    end: datetime
    points: tuple[str, ...]
    """The restore points in it; the first one is at `begin`."""
    tail: datetime | None = None
    """When the store got WAL behind `end`: a restore of all there is comes about so far."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a restore reads."""

    point: Point
    to: datetime | None
    """None: as far as there is WAL."""
    until: int
    """LSN up to which WAL is given."""
    wal: tuple[Piece, ...]
    """In order, from the segment where replay begins. Later objects of one segment go over earlier ones."""
    histories: tuple[str, ...]
    moments: tuple[Moment, ...]
    """Those that name this WAL."""
    media: tuple[Ref, ...]
    """Manifests of media runs: the newest, and where files may have been removed since, the one before."""

    @property
    def names(self) -> set[str]:
        """All objects but those of media."""
        own = {names.point(self.point.id), self.point.base.name, self.point.configuration.name}
        moments = {names.moment(each.line, each.id) for each in self.moments}
        return own | moments | {each.name for each in self.wal} | set(self.histories)


@dataclass(kw_only=True)
class Catalogue:
    """One server's backups in one store."""

    objects: dict[str, Stored]
    points: dict[str, Point] = field(default_factory=dict)
    moments: dict[str, list[Moment]] = field(default_factory=dict)
    """By line, in order of their numbers."""
    runs: dict[str, MediaRun] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each manifest as stored."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Manifests that can't be read, are of a later release or another server's, and why."""

    _coverage: dict[str, list[str]] = field(init=False, repr=False, default_factory=dict)

    @classmethod
    def read(
        cls, store: Store, organisation: str, server: str, *, cache: MutableMapping[str, bytes] | None = None
    ) -> Catalogue:
        """Read a store. Raises `StoreError` when it can't be listed, or does not answer.

        `cache` may hold manifests of before by name, size and mark: none is ever written again under its name.
        """
        found = cls(objects={each.name: each for each in store.listing()})
        wanted = [each for each in found.objects.values() if _kind(each.name) is not None]
        with ThreadPoolExecutor(WORKERS, "catalogue") as pool:
            for each, data in zip(wanted, pool.map(lambda one: _get(store, one, cache), wanted), strict=True):
                found._take(each, data, organisation, server)
        for moments in found.moments.values():
            moments.sort(key=lambda moment: (moment.number, moment.id))
        return found

    def without(self, lost: Iterable[str]) -> Catalogue:
        """Return what would be left if these objects were not there."""
        gone = set(lost)
        return replace(
            self,
            objects={name: each for name, each in self.objects.items() if name not in gone},
            points={key: each for key, each in self.points.items() if names.point(key) not in gone},
            moments={
                line: [each for each in some if names.moment(line, each.id) not in gone]
                for line, some in self.moments.items()
            },
            runs={key: each for key, each in self.runs.items() if names.media_run(key) not in gone},
        )

    def lines(self) -> list[str]:
        """Return all lines of which there is anything, the oldest first."""
        below = {name.split("/")[1] for name in self.objects if name.startswith(names.LINES)}
        return sorted(below | {point.line for point in self.points.values()})

    def coverage(self, line: str) -> Coverage:
        """Return which WAL of a line there is."""
        if not self._coverage:
            for name in self.objects:
                if name.startswith(names.LINES) and "/wal/" in name:
                    self._coverage.setdefault(name.split("/")[1], []).append(name)
        return Coverage(self._coverage.get(line, ()))

    def is_whole(self, point: Point, coverage: Coverage | None = None) -> bool:
        """Return whether all that the point's database needs is there, by name and size."""
        stretch = (coverage or self.coverage(point.line)).from_(lsn.number(point.begin), lsn.number(point.end))
        whole = all(self.matches(ref) for ref in (point.base, point.configuration))
        return whole and stretch.end >= lsn.number(point.end)

    def matches(self, ref: Ref) -> bool:
        """Return whether an object is listed with the right size."""
        found = self.objects.get(ref.name)
        return found is not None and found.size == ref.size

    def windows(self) -> list[Window]:
        """Return what can be restored, the oldest first. Between two windows nothing can."""
        found: list[Window] = []
        for line in self.lines():
            coverage = self.coverage(line)
            ends = [(lsn.number(each.lsn), each.at) for each in self.moments.get(line, ())]
            some: list[Window] = []
            for point in sorted((each for each in self.points.values() if each.line == line), key=lambda one: one.at):
                if self.is_whole(point, coverage):
                    _append(some, self._window(point, coverage.from_(lsn.number(point.begin)), ends))
            found += some
        return sorted(found, key=lambda window: window.begin)

    def need(self, *, to: datetime | None = None, point: str = "") -> Need:
        """Return what a restore needs: to a second, to exactly a restore point, or (neither) to the latest there is.

        Raises `NotRestorable`, saying what could be restored instead.
        """
        if point:
            return self._exactly(point)
        for window in reversed(self.windows()):
            last = window.tail or window.end
            if to is None or window.begin <= to <= last:
                return self._within(window, to)
        raise NotRestorable(self._told(to))

    def chain(self, ref: Ref | None) -> list[MediaRun]:
        """Return the manifests of media runs that an index needs, the newest first, to the full one.

        Raises `NotRestorable` where one is missing.
        """
        found: list[MediaRun] = []
        while ref is not None:
            run = self.runs.get(ref.name.rsplit("/", 1)[-1])
            if run is None or self.digests.get(ref.name) != ref.sha256 or len(found) > MOST_CHAIN:
                raise NotRestorable(f"The media index {ref.name} is missing or not what it was. Try another copy.")
            found.append(run)
            ref = run.previous if run.chain else None
        return found

    def seals(self, keys: Keys, found: Iterable[Sealed]) -> dict[str, str]:
        """Return which of these manifests the engine did not write, and why that is known.

        `keys` raises `LookupError` for a key that does not exist.
        """
        wrong: dict[str, str] = {}
        for each in found:
            name = name_of(each)
            try:
                manifest.check(each, keys, name)
            except ManifestError as error:
                wrong[name] = str(error)
            except LookupError:
                wrong[name] = f"The seal of the manifest {name} asks for a data key that does not exist."
        return wrong

    def _window(self, point: Point, stretch: Stretch, ends: list[tuple[int, datetime]]) -> Window:
        told = [(place, at) for place, at in ends if at >= point.at and place <= stretch.end]
        place, end = max(told, key=lambda each: each[1], default=(lsn.number(point.end), point.at))
        behind = [self.objects[each.name].modified for each in stretch.pieces if each.end > place]
        tail = max((each for each in behind if each is not None), default=None)
        if any(place > stretch.end for place, _ in ends):
            tail = None  # WAL is missing, and when the store got what there is says nothing of how far it goes
        return Window(point.line, point.at, end, (point.id,), tail if tail is not None and tail > end else None)

    def _exactly(self, identity: str) -> Need:
        point = self.points.get(identity)
        if point is None or not self.is_whole(point):
            raise NotRestorable(f"The restore point {identity} is not whole in this store. {self._told(None)}")
        end = lsn.number(point.end)
        media = (point.media,) if point.media else ()
        return self._need(point, self.coverage(point.line).from_(lsn.number(point.begin), end), end, point.at, media)

    def _within(self, window: Window, to: datetime | None) -> Need:
        points = [self.points[each] for each in window.points]
        point = max((each for each in points if to is None or each.at <= to), key=lambda each: each.at)
        stretch = self.coverage(window.line).from_(lsn.number(point.begin))
        line = [each for each in self.moments.get(window.line, ()) if lsn.number(each.lsn) <= stretch.end]
        after = next((each for each in line if to is not None and each.at >= to), None)
        before = next((each for each in reversed(line) if to is None or each.at <= to), None)
        media = [each.media for each in (after, before) if each is not None and each.media is not None]
        if not media and point.media is not None:
            media = [point.media]
        if after is not None:
            until = max(lsn.number(after.lsn), lsn.number(point.end))
            stretch = self.coverage(window.line).from_(lsn.number(point.begin), until)
        return self._need(point, stretch, stretch.end, to, tuple(dict.fromkeys(media)))

    def _need(self, point: Point, stretch: Stretch, until: int, to: datetime | None, media: tuple[Ref, ...]) -> Need:
        taken = {each.name for each in stretch.pieces}
        naming = (each for each in self.moments.get(point.line, ()) if any(ref.name in taken for ref in each.wal))
        histories = (each for each in self.objects if _is_history(each, point.line))
        return Need(
            point=point,
            to=to,
            until=until,
            wal=stretch.pieces,
            histories=tuple(sorted(histories)),
            moments=tuple(naming),
            media=media,
        )

    def _told(self, to: datetime | None) -> str:
        windows = self.windows()
        if not windows:
            return "There is no whole restore point in this store. Look at the other store's."
        some = "; ".join(f"{each.begin:%Y-%m-%d %H:%M:%S} to {each.end:%Y-%m-%d %H:%M:%S} UTC" for each in windows)
        wanted = f"{to:%Y-%m-%d %H:%M:%S} UTC can't be restored from this store. " if to else ""
        return f"{wanted}What can be: {some}."

    def _take(self, found: Stored, data: bytes | str, organisation: str, server: str) -> None:
        kind, identity = _kind(found.name), found.name.rsplit("/", 1)[-1]
        try:
            if isinstance(data, str) or kind is None:
                raise ManifestError(str(data))
            each = manifest.read(data, kind, found.name)
            if (each.organisation, each.server) != (organisation, server):
                raise ManifestError(f"The manifest {found.name} is another server's.")
            if isinstance(each, Moment) and names.moment(each.line, identity) != found.name:
                raise ManifestError(f"The manifest {found.name} is another line's.")
            _check_sense(each)
        except ManifestError as error:
            self.damaged[found.name] = str(error)
            return
        self.digests[found.name] = hashlib.sha256(data).hexdigest()
        if isinstance(each, Point):
            self.points[identity] = each
        elif isinstance(each, MediaRun):
            self.runs[identity] = each
        elif isinstance(each, Moment):
            self.moments.setdefault(each.line, []).append(each)


def name_of(found: Sealed) -> str:
    """Return the name that a manifest lies under."""
    if isinstance(found, Moment):
        return names.moment(found.line, found.id)
    return names.media_run(found.id) if isinstance(found, MediaRun) else names.point(found.id)


def _check_sense(found: Sealed) -> None:
    """Raise `ManifestError` where a manifest says what no engine writes, so that nobody has to expect it later."""
    try:
        names.time_of(found.id)
        sound = found.at.tzinfo is not None
        if isinstance(found, Point):
            names.time_of(found.line)
            sound &= lsn.number(found.begin) <= lsn.number(found.end)
            sound &= (found.base.name, found.configuration.name) == (
                names.base(found.id),
                names.configuration(found.id),
            )
        elif isinstance(found, Moment):
            names.time_of(found.line)
            sound &= lsn.number(found.lsn) >= 0 <= found.number
            sound &= all(ref.name.startswith(f"{names.LINES}{found.line}/wal/") for ref in found.wal)
        elif isinstance(found, MediaRun):
            sound &= found.chain >= 0 and found.index.name == names.media_index(found.id)
            for packs in found.packs:
                names.time_of(packs.run)
        media = found.previous if isinstance(found, MediaRun) else getattr(found, "media", None)
        sound &= media is None or media.name.startswith(names.MEDIA_RUNS)
    except ValueError:
        sound = False
    if not sound:
        raise ManifestError(f"The manifest {name_of(found)} says what no engine writes. Try another copy.")


def _append(some: list[Window], found: Window) -> None:
    """Put a point's window behind the line's others, or into the last one where they meet."""
    if some and found.begin <= some[-1].end:
        last = some[-1]
        points = (*last.points, *found.points)
        some[-1] = replace(last, end=max(last.end, found.end), points=points, tail=found.tail or last.tail)
    else:
        some.append(found)


def _kind(name: str) -> type[Point] | type[Moment] | type[MediaRun] | None:
    if name.startswith(names.POINTS):
        return Point
    if name.startswith(names.MEDIA_RUNS):
        return MediaRun
    return Moment if name.startswith(names.LINES) and "/moments/" in name else None


def _is_history(name: str, line: str) -> bool:
    return name.startswith(f"{names.LINES}{line}/wal/") and name.endswith(".history")


def _get(store: Store, found: Stored, cache: MutableMapping[str, bytes] | None) -> bytes | str:
    """Return a manifest's bytes, or why there are none."""
    if found.size > LARGEST:
        return f"The manifest {found.name} has {found.size} bytes, more than one can have."
    place = f"{found.name} {found.size} {found.mark}"
    if cache is not None and found.mark and place in cache:
        return cache[place]
    try:
        data = b"".join(store.get(found.name))
    except NoSuchObject:
        return f"The manifest {found.name} is listed and can't be read: it is gone."
    except StoreError as error:
        if error.code != "StoreDamaged":
            raise
        return str(error)
    if len(data) != found.size:
        return f"The manifest {found.name} has {len(data)} bytes, and the listing says {found.size}."
    if cache is not None and found.mark:
        cache[place] = data
    return data
