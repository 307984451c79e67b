"""Removes what no kept restore point and no second of the window needs, in two phases. Imports no Django.

    expire(store, organisation, server, retention, now=database's now, dry_run=True)

First what is unneeded is written down (`expiry/<id>`); a day later, what still is unneeded is removed. `retention` says
what that is. Killed anywhere it leaves nothing wrong: manifests go before what they name, and lists are only ever added
to before they are replaced. An engine may write meanwhile: just before the removal all manifests are read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from backups.engine import names
from backups.engine.catalogue import Catalogue
from backups.engine.manifest import MediaRun, Moment, Point
from backups.engine.retention import Plan, Retention, plan
from backups.engine.stores.base import NoSuchObject, Store

WAITS = timedelta(hours=24)
_FORMAT = 1
_AT_ONCE = 500
_LARGEST = 256 * 2**20


class Condemned(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What was found unneeded, and when first. Only shortens a wait: what is needed is never removed by it."""

    format: int = _FORMAT
    organisation: str
    server: str
    since: dict[datetime, list[str]]


@dataclass(frozen=True, kw_only=True)
class Expired:
    """What a run did, or with `dry_run` would do. Bytes as stored."""

    removed: tuple[str, ...]
    removed_bytes: int
    waiting: tuple[str, ...]
    """Unneeded, and removed a day after that was first seen."""
    kept_points: tuple[str, ...]
    blocked: tuple[str, ...]
    """Manifests that can't be read: what they may need is kept."""


def expire(
    store: Store,
    organisation: str,
    server: str,
    retention: Retention,
    *,
    now: datetime,
    dry_run: bool = False,
    cache: MutableMapping[str, bytes] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Expired:
    """Expire one server's backups in one store. Raises `StoreError`; what was removed until then was unneeded."""

    def planned() -> tuple[Catalogue, Plan]:
        catalogue = Catalogue.read(store, organisation, server, cache=cache)
        return catalogue, plan(catalogue, retention, now)

    catalogue, found = planned()
    whose = Condemned(organisation=organisation, server=server, since={})
    lists = [each.name for each in store.listing(names.EXPIRY)]
    since = _first_seen(store, lists, whose)
    due = _due(catalogue, found, since, now)
    if due and not dry_run:
        catalogue, found = planned()
        due = _due(catalogue, found, since, now)
        for begin in range(0, len(due), _AT_ONCE):
            if stopped():
                due = due[:begin]
                break
            store.delete(due[begin : begin + _AT_ONCE])
    gone = set(due)
    waiting = sorted(found.unneeded - gone)
    if not dry_run:
        for name in waiting:
            whose.since.setdefault(min(since.get(name, now), now), []).append(name)
        _write(store, whose, lists, now)
    return Expired(
        removed=tuple(due),
        removed_bytes=sum(catalogue.objects[name].size for name in due),
        waiting=tuple(waiting),
        kept_points=tuple(sorted(found.points)),
        blocked=tuple(found.blocked),
    )


def _due(catalogue: Catalogue, found: Plan, since: dict[str, datetime], now: datetime) -> list[str]:
    """Return what goes now, in the order in which it goes."""
    due = {name for name in found.unneeded if now - since.get(name, now) >= WAITS}
    # What a manifest names goes only with it or after it, whatever is written about when each was seen.
    due -= _named_by(catalogue, found.unneeded - due)
    return sorted(due, key=_order)


def _named_by(catalogue: Catalogue, manifests: Iterable[str]) -> set[str]:
    """Return what these manifests name."""
    wanted, found = set(manifests), set[str]()
    for point in catalogue.points.values():
        if names.point(point.id) in wanted:
            found |= _of_point(point)
    for run in catalogue.runs.values():
        if names.media_run(run.id) in wanted:
            found |= _of_run(run)
    for moments in catalogue.moments.values():
        for moment in moments:
            if names.moment(moment.line, moment.id) in wanted:
                found |= _of_moment(moment)
    return found


def _of_point(point: Point) -> set[str]:
    return {point.base.name, point.configuration.name, *([point.media.name] if point.media else [])}


def _of_run(run: MediaRun) -> set[str]:
    before = {run.previous.name} if run.chain and run.previous else set[str]()
    return before | {each.name for each in run.refs()}


def _of_moment(moment: Moment) -> set[str]:
    return {ref.name for ref in moment.wal} | ({moment.media.name} if moment.media else set())


def _order(name: str) -> tuple[int, str]:
    """Manifests of restore points first, then moments from the oldest, media runs from the newest, then the rest."""
    if name.startswith(names.POINTS):
        return 0, name
    if name.startswith(names.LINES) and "/moments/" in name:
        return 1, name
    if name.startswith(names.MEDIA_RUNS):
        return 2, "".join(chr(0x7F - ord(each)) for each in name)
    return 3, name


def _first_seen(store: Store, lists: list[str], whose: Condemned) -> dict[str, datetime]:
    """Return when each condemned object was first seen unneeded."""
    found: dict[str, datetime] = {}
    for name in lists:
        try:
            if store.head(name).size > _LARGEST:
                continue
            each = msgspec.json.decode(b"".join(store.get(name)), type=Condemned)
        except (NoSuchObject, msgspec.DecodeError, UnicodeDecodeError):
            continue  # it costs a day
        if (each.format, each.organisation, each.server) == (_FORMAT, whose.organisation, whose.server):
            for at, some in each.since.items():
                for one in some:
                    found[one] = min(at, found.get(one, at))
    return found


def _write(store: Store, found: Condemned, lists: list[str], now: datetime) -> None:
    """Write the new list, and only then remove those before it."""
    if found.since:
        store.put(f"{names.EXPIRY}{names.new_id(now)}", [msgspec.json.encode(found)])
    store.delete(lists)
