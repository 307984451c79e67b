"""What a restore reads, chosen and checked before anything is fetched. Imports no Django."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from backups.engine import names, verify
from backups.engine.catalogue import Catalogue, Need, NotRestorable, Window
from backups.engine.database import lsn
from backups.engine.manifest import MediaRun, Moment, Ref, Sealed
from backups.engine.media import unpack
from backups.engine.media.errors import MediaError
from backups.engine.media.index import File
from backups.engine.objects import Vault
from backups.engine.restore.errors import RestoreError
from backups.engine.restore.request import Request
from security.streams import StreamError
from security.streams.flow import Keys


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One restore's reading."""

    catalogue: Catalogue
    need: Need
    known: dict[str, Ref]
    """WAL objects by name that a moment names; what no moment names yet is told by its encryption alone."""
    floor: int
    """The LSN that replay must reach at least, where it does not stop at the wanted moment before."""
    runs: tuple[tuple[MediaRun, ...], ...]
    """Chains of media runs, the newest manifest first; an earlier chain's files go over a later one's."""
    window: Window | None

    @property
    def totals(self) -> dict[str, int]:
        """Bytes to fetch, as stored: `base`, `wal`, `media`."""
        objects = self.catalogue.objects
        packs = {ref.name: ref.size for chain in self.runs for run in chain for ref in _media(run)}
        return {
            "base": self.need.point.base.size,
            "wal": sum(objects[each.name].size for each in self.need.wal),
            "media": sum(packs.values()),
        }


def make(request: Request, catalogue: Catalogue, keys: Keys) -> Plan:
    """Choose what is read for a request, and check by listing and seals that it is there. Raises `RestoreError`."""
    try:
        need = catalogue.need(to=request.to, point=request.point)
        runs = tuple(tuple(catalogue.chain(ref)) for ref in reversed(need.media)) if request.media else ()
    except NotRestorable as error:
        raise RestoreError(f"{error} Nothing was restored.", code="NotRestorable") from None
    known = {ref.name: ref for moment in need.moments for ref in moment.wal}
    if not request.point and (unread := _unread(catalogue, need)):
        raise damaged(catalogue, unread, request.to)
    _check_there(catalogue, need, known, runs, request.to)
    used: list[Sealed] = [need.point, *need.moments, *(run for chain in runs for run in chain)]
    if wrong := catalogue.seals(keys, used):
        raise damaged(catalogue, wrong, request.to)
    window = next((each for each in catalogue.windows() if need.point.id in each.points), None)
    return Plan(catalogue=catalogue, need=need, known=known, floor=_floor(need, request), runs=runs, window=window)


def files(plan: Plan, vault: Vault, keys: Keys) -> dict[str, File]:
    """Return all media files of the plan by their paths. Raises `RestoreError` where an index is not right."""
    opens = keys if callable(keys) else lambda _: keys
    found: dict[str, File] = {}
    for chain in plan.runs:
        try:
            found |= unpack.files(vault, opens, chain)
        except (MediaError, StreamError) as error:
            hit = {run.index.name: str(error) for run in chain}
            raise damaged(plan.catalogue, hit, plan.need.to) from None
    return found


def damaged(catalogue: Catalogue, found: dict[str, str], to: datetime | None) -> RestoreError:
    """Return the error for objects (name to what is wrong): which restore points they hit, and what is near instead."""
    points = verify.chosen(catalogue, None)
    told = verify.report(
        catalogue, points, {name: ("content", text) for name, text in found.items()}, objects=0, size=0, full=False
    )
    name, text = next(iter(sorted(found.items())))
    hit = ", ".join(told.hit) or "none"
    some = _near(catalogue.without(found), to)
    return RestoreError(
        f"{name} is damaged or missing: {text.rstrip('.')}. Restore points that need it: {hit}. {some} "
        "Nothing that ran before was touched.",
        code="Damaged",
        objects=sorted(found),
        points=told.hit,
    )


def _near(left: Catalogue, to: datetime | None) -> str:
    """Say which moments nearest to `to` can be restored of what is left."""
    windows = left.windows()
    if not windows:
        return "Nothing else can be restored from this store; look at the other one."
    if to is None:
        return f"The latest moment that can be restored without it is {_told(max(each.end for each in windows))}."
    before = max((min(each.end, to) for each in windows if each.begin <= to), default=None)
    after = min((each.begin for each in windows if each.begin > to), default=None)
    some = " and ".join(_told(each) for each in (before, after) if each is not None)
    return f"Nearest to it, without what is damaged, can be restored: {some}."


def _told(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _check_there(
    catalogue: Catalogue,
    need: Need,
    known: dict[str, Ref],
    runs: Iterable[tuple[MediaRun, ...]],
    to: datetime | None,
) -> None:
    wanted = [need.point.base, need.point.configuration]
    wanted += [known[each.name] for each in need.wal if each.name in known]
    wanted += [ref for chain in runs for run in chain for ref in _media(run)]
    wrong: dict[str, str] = {}
    for ref in wanted:
        if not catalogue.matches(ref):
            there = catalogue.objects.get(ref.name)
            wrong[ref.name] = f"it has {there.size} bytes and not {ref.size}" if there else "it is not in the store"
    if wrong:
        raise damaged(catalogue, wrong, to)


def _unread(catalogue: Catalogue, need: Need) -> dict[str, str]:
    """Return moments behind the last that can be read, where the restore goes beyond that one.

    There is WAL up to there, and only they knew which media there were.
    """
    line = catalogue.moments.get(need.point.line, [])
    if need.to is not None and any(each.at >= need.to for each in line):
        return {}
    newest = max((need.point.id, *(each.id for each in line)))
    place = names.moment(need.point.line, newest)
    before = place.removesuffix(newest)
    return {name: why for name, why in catalogue.damaged.items() if name.startswith(before) and name > place}


def _media(run: MediaRun) -> list[Ref]:
    """Return what a restore reads of a run: not what an engine alone needs."""
    return [ref for ref in run.refs() if run.known is None or ref.name != run.known.name]


def _floor(need: Need, request: Request) -> int:
    """Return how far replay must get at least: to the last moment of which all WAL is given, or the point's end."""
    told = [lsn.number(each.lsn) for each in _moments_of(need)]
    found = max((place for place in told if place <= need.until), default=0)
    return lsn.number(need.point.end) if request.point else max(found, lsn.number(need.point.end))


def _moments_of(need: Need) -> Iterable[Moment]:
    with contextlib.suppress(ValueError):
        yield from need.moments
