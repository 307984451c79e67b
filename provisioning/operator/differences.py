"""What must be written so that a server's children are as rendered: a comparison, without any I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from provisioning.operator.children import KEEPS, KINDS, ORDER, Place
from provisioning.operator.keeping import DATA
from provisioning.operator.ownership import stamp
from provisioning.operator.store import Child


class Cause(Enum):
    """Why a child must be written."""

    NEW = "new"
    CHANGED = "changed"
    """What is wanted has changed."""
    EDITED = "edited"
    """Somebody else has changed or removed a field of ours."""
    DELETED = "deleted"
    """It was there, and somebody else has deleted it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A child as it should be: the digest of its document."""

    place: Place
    digest: str


@dataclass(frozen=True, slots=True)
class Write:
    """A child to apply."""

    place: Place
    digest: str
    cause: Cause
    editor: str = ""


@dataclass(frozen=True)
class Differences:
    """What to apply, in order, what to delete, and what is left though nobody wants it, because it holds data."""

    writes: tuple[Write, ...]
    surplus: tuple[Place, ...]
    kept: tuple[Place, ...]
    waiting: tuple[Place, ...] = ()
    """Still being deleted: it can be made again only once it is gone."""
    lost: tuple[Place, ...] = ()
    """Held data and is gone. It is not made again."""
    unsure: tuple[Place, ...] = ()
    """Holds data, and whether it is there can't be told now."""

    def __bool__(self) -> bool:
        return bool(self.writes or self.surplus)


Untouched = Callable[[Place, Child], bool]
"""Says whether a live child still has every field that we applied."""


def compare(
    wanted: Iterable[Wanted],
    live: Mapping[Place, Child],
    *,
    owner: str,
    untouched: Untouched,
    was: Iterable[Place] = (),
    hold: Callable[[Place], bool] = lambda _place: False,
    established: bool = False,
    told: Callable[[str], bool] = lambda _kind: True,
) -> Differences:
    """Return what must be written. `was`: children that were there before; `hold`: whose change must wait.

    `established`: what holds data is not made any more; `told`: whether all objects of a kind have been seen.
    """
    writes, waiting, gone, names = [], [], [], set()
    before = set(was)
    for each in wanted:
        names.add(each.place)
        held = live.get(each.place)
        if held is not None and held.deleting:
            waiting.append(each.place)
        elif held is None and established and each.place in DATA:
            gone.append(each.place)
        elif (cause := _cause(each, held, owner, untouched, before)) and not (
            cause is Cause.CHANGED and hold(each.place)
        ):
            writes.append(Write(each.place, each.digest, cause, held.editor if held else ""))
    extra = [
        place for place, child in live.items() if place not in names and not child.deleting and _ours(child, owner)
    ]
    return Differences(
        writes=tuple(sorted(writes, key=lambda write: ORDER.get(write.place.kind, 99))),
        surplus=tuple(sorted(place for place in extra if place.kind not in KEEPS)),
        kept=tuple(sorted(place for place in extra if place.kind in KEEPS)),
        waiting=tuple(waiting),
        lost=tuple(place for place in gone if told(place.kind)),
        unsure=tuple(place for place in gone if not told(place.kind)),
    )


def _cause(wanted: Wanted, held: Child | None, owner: str, untouched: Untouched, before: set[Place]) -> Cause | None:
    if held is None:
        return Cause.DELETED if wanted.place in before else Cause.NEW
    if held.digest and held.digest != stamp(wanted.digest):
        return Cause.CHANGED
    expected = owner if KINDS[wanted.place.kind].namespaced else ""
    if not held.digest or held.owner != expected or not untouched(wanted.place, held):
        return Cause.EDITED
    return None


def _ours(child: Child, owner: str) -> bool:
    return child.owner in {owner, ""}
