"""What a second store lacks of a first one, by their listings: what `replicate` has to do. Imports no Django.

What expiry wrote down (`expiry/`) is each store's own and never copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from backups.engine import names
from backups.engine.manifest import MediaRun, Moment, Point, Ref
from backups.engine.stores.base import Store, Stored, StoreError

Manifest = Point | Moment | MediaRun
_KINDS: tuple[tuple[str, type[Manifest]], ...] = (
    (names.MEDIA_RUNS, MediaRun),
    ("/moments/", Moment),
    (names.POINTS, Point),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One object that could not be copied, and what that means."""

    name: str
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Lag:
    """What the second store lacks. `seconds` is the age of the oldest of it; 0 where it lacks nothing."""

    objects: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Shown:
    """What a store shows by the names of its manifests alone."""

    points: set[str] = field(default_factory=set)
    """Ids of restore points."""
    moments: dict[str, str] = field(default_factory=dict)
    """By line, the id of its newest moment; ids begin with their time."""

    def note(self, name: str) -> None:
        """Take one object's name into account."""
        if name.startswith(names.POINTS):
            self.points.add(name.removeprefix(names.POINTS))
        elif kind_of(name) is Moment:
            _, line, _, identity = name.split("/", 3)
            self.moments[line] = max(identity, self.moments.get(line, ""))


@dataclass
class Report:
    """What one turn did."""

    copied: int = 0
    bytes: int = 0
    faults: list[Fault] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    """Manifests that were not copied, because something that they name is not there yet."""
    stopped: StoreError | None = None
    """Why the turn ended before its end; what lacks is copied by the next one."""
    more: bool = False
    """The turn's bounds were reached: the next one goes on at once."""
    before: Lag = Lag()
    after: Lag = Lag()
    source: Shown = field(default_factory=Shown)
    """What the source showed when the turn began."""
    target_before: Shown = field(default_factory=Shown)
    target: Shown = field(default_factory=Shown)
    """What the target showed when the turn ended, as far as is known: all of it when the turn was not stopped."""
    listed: bool = False
    """Whether both listings were read to their ends. Without that nothing here says what a store lacks."""

    @property
    def is_complete(self) -> bool:
        """Whether the target has all that the source showed."""
        return self.listed and not (self.stopped or self.more or self.faults or self.waiting or self.after.objects)


@dataclass(slots=True)
class Compared:
    """Two listings, side by side."""

    missing: dict[str, Stored] = field(default_factory=dict)
    differing: list[str] = field(default_factory=list)
    """Names under which the two have different sizes."""
    newest: datetime | None = None
    """When the source's newest manifest was written."""
    source: Shown = field(default_factory=Shown)
    target: Shown = field(default_factory=Shown)


def compare(source: Store, target: Store) -> Compared:
    """Walk both listings side by side. Raises `StoreError`."""
    found = Compared()
    others = _listed(target, found.target)
    other = next(others, None)
    for each in _listed(source, found.source):
        if kind_of(each.name) and each.modified:
            found.newest = max(found.newest or each.modified, each.modified)
        while other is not None and other.name < each.name:
            other = next(others, None)
        if other is None or other.name != each.name:
            found.missing[each.name] = each
        elif other.size != each.size:
            found.differing.append(each.name)
    for _ in others:  # to the end: what it shows is noted
        pass
    return found


def _listed(store: Store, shown: Shown) -> Iterator[Stored]:
    for each in store.listing():
        if not each.name.startswith(names.EXPIRY):
            shown.note(each.name)
            yield each


def lag_of(missing: Iterable[Stored]) -> Lag:
    """Return how much that is, and how old its oldest."""
    now, some = datetime.now(UTC), list(missing)
    oldest = min((each.modified for each in some if each.modified), default=now)
    return Lag(len(some), sum(each.size for each in some), max((now - oldest).total_seconds(), 0.0) if some else 0.0)


def kind_of(name: str) -> type[Manifest] | None:
    """Return which manifest a name is of, or None for data."""
    if name.startswith(names.LINES):
        return Moment if name.split("/")[2:3] == ["moments"] else None
    return next((kind for prefix, kind in _KINDS if name.startswith(prefix)), None)


def order_of(name: str) -> tuple[int, str]:
    """Return what manifests are sorted by before they are copied: restore points last, each kind from its oldest."""
    kind = kind_of(name)
    return [each for _, each in _KINDS].index(kind) if kind else -1, name


def refs(found: Manifest) -> Iterator[Ref]:
    """Yield what must be in a store before a manifest is."""
    if isinstance(found, MediaRun):
        yield from found.refs()
        if found.previous is not None and found.chain:
            yield found.previous
        return
    if isinstance(found, Moment):
        yield from found.wal
    else:
        yield found.base
        yield found.configuration
    if found.media is not None:
        yield found.media


def differs(name: str) -> Fault:
    """Return the fault of an object that is not what it should be on one side."""
    text = (
        f"The two stores don't agree about {name}, or it is not what its manifest says. It was not copied, and what "
        "needs it is not shown there. Verify both stores, and repair the one that is wrong."
    )
    return Fault(name, "StoreDamaged", text)
