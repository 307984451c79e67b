"""One turn of one server in one store: look whether all is there, then remove what has expired (`engine.expiry`).

A restore point that its policy no longer keeps is no longer offered from the first phase on, a day before it goes.
Nothing is removed while the store can't be listed whole, lacks a restore point that Hearth knows, or is restored from.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Count, Max

from audit.services import SYSTEM, record
from backups import checking, places, regions, shelves
from backups.engine import names
from backups.engine.catalogue import Catalogue
from backups.engine.expiry import Expired, expire
from backups.engine.retention import Retention, plan
from backups.engine.stores.base import Store, StoreError
from backups.models import Proof, Restore, RestorePoint, Shelf
from backups.policies import policy_of
from provisioning.models import Operation
from security.errors import SecurityError
from security.keyring.publish import database_time
from tenants.models import Server

State = RestorePoint.State
AT_ONCE = 500
BEHIND = timedelta(hours=36)
"""So much later everything goes from a second store: what the first still has would only be copied to it again."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a turn did, or with `dry_run` would do."""

    expired: Expired | None
    held: str = ""
    """Why nothing was removed, for a person."""


def turn(shelf: Shelf, *, dry_run: bool = False) -> Turn:
    """Do one turn. Raises `StoreError`, `SecurityError`; what was removed until then was unneeded."""
    with places.opened(shelf.store, shelf.server_id) as store:
        at = database_time()
        # What has expired by this moment goes.
        over = at - BEHIND if regions.is_second(shelf.server, shelf.store) else at
        if is_over(shelf.server, over):
            return _empty(store, shelf, over, dry_run=dry_run)
        expected, cache = checking.known_points(shelf.server, shelf.store), dict[str, bytes]()
        catalogue = Catalogue.read(store, *_whose(shelf.server), cache=cache)
        missing = expected - catalogue.points.keys()
        if not dry_run:
            checking.look(shelf, catalogue, expected, at, database_time())
        if held := _held(shelf.server, missing):
            done = Turn(expired=None, held=held)
        else:
            done = Turn(expired=_expire(store, shelf, catalogue, cache, over, dry_run=dry_run))
        if not dry_run:
            _ended(shelf, catalogue, done, at)
        return done


def run(pk: int) -> None:
    """Do the turn of a shelf that was claimed, and write down how it went."""
    shelf = Shelf.objects.select_related("server", "store").get(pk=pk)
    if Proof.objects.filter(server=shelf.server, result="").exclude(step="begin").exists():
        return  # it is being read or tried out: nothing may go under its hands. The claim has put the turn off
    try:
        turn(shelf)
    except (StoreError, SecurityError) as error:
        shelves.failed(shelf, error)


def retention_of(server: Server, at: datetime) -> Retention:
    """Return how long a server's backups are kept: by its policy now, and nothing for less long than was promised."""
    policy = policy_of(server)
    days = max(policy.retention_days, policy.final_days) if server.deleted else policy.retention_days
    rows = RestorePoint.objects.filter(server=server, keep_until__gt=at)
    promised = frozenset(rows.values_list("identity", flat=True))
    return Retention(days=days, window_days=policy.window_days, promised=promised)


def is_over(server: Server, at: datetime) -> bool:
    """Return whether a deleted server's final backup has outlived it for as long as it was to."""
    if server.deleted is None or at - server.deleted < timedelta(days=policy_of(server).final_days):
        return False
    rows = RestorePoint.objects.filter(server=server, keep_until__gt=at).exclude(state=State.GONE)
    return not rows.exists() and not _is_restored(server)


def _is_restored(server: Server) -> bool:
    return Restore.objects.filter(source=server, operation__state__in=Operation.OPEN).exists()


def _held(server: Server, missing: frozenset[str] | set[str]) -> str:
    if missing:
        return f"The store lacks restore points that were there, {min(missing)} among them. Nothing was removed."
    return "It is being restored from. Nothing was removed." if _is_restored(server) else ""


def _expire(
    store: Store,
    shelf: Shelf,
    catalogue: Catalogue,
    cache: MutableMapping[str, bytes],
    at: datetime,
    *,
    dry_run: bool,
) -> Expired:
    retention = retention_of(shelf.server, at)
    if not dry_run and regions.is_first(shelf.server, shelf.store):
        _tell(shelf.server, catalogue, plan(catalogue, retention, at).points, at)
    return expire(store, *_whose(shelf.server), retention, now=at, dry_run=dry_run, cache=cache)


@transaction.atomic
def _tell(server: Server, catalogue: Catalogue, kept: set[str], at: datetime) -> None:
    """Offer the restore points that are kept, and no others: before they go, so that no row outlives its objects."""
    rows = RestorePoint.objects.filter(server=server)
    over = catalogue.points.keys() - kept
    rows.filter(identity__in=over).exclude(state=State.GONE).update(state=State.GONE)
    lost = rows.filter(state=State.DAMAGED, keep_until__lt=at).exclude(identity__in=catalogue.points.keys())
    lost.update(state=State.GONE)
    rows.filter(identity__in=kept, state=State.GONE).update(state=State.WHOLE)


def _ended(shelf: Shelf, catalogue: Catalogue, done: Turn, at: datetime) -> None:
    sizes = {name: each.size for name, each in catalogue.objects.items()}
    gone = set(done.expired.removed) if done.expired else set()
    waiting = done.expired.waiting if done.expired else ()
    promised = _promised(shelf.server, at)
    Shelf.objects.filter(pk=shelf.pk).update(
        turned=at,
        next_turn=at + shelves.EVERY,
        objects_there=len(sizes) - len(gone),
        bytes_there=sum(size for name, size in sizes.items() if name not in gone),
        bytes_waiting=sum(sizes.get(name, 0) for name in waiting),
        removed=at if gone else shelf.removed,
        promised=promised[0],
        promised_until=promised[1],
        fault=done.held,
        fault_since=(shelf.fault_since or at) if done.held else None,
    )


def _promised(server: Server, at: datetime) -> tuple[int, datetime | None]:
    """Return how many restore points are kept for a promise alone, and until when the last of them is."""
    over = at - timedelta(days=policy_of(server).retention_days)
    rows = RestorePoint.objects.filter(server=server, at__lt=over, keep_until__gt=at).exclude(state=State.GONE)
    found = rows.aggregate(count=Count("pk"), last=Max("keep_until"))
    return found["count"], found["last"]


@transaction.atomic
def _given_up(server: Server, over: datetime) -> bool:
    """Offer nothing of a server any more whose final backup is over. False: it is not, or not any longer.

    Under the lock that `revival` takes: a server either came back before, or finds no restore point to come back from.
    """
    locked = Server.objects.select_for_update(of=("self",)).select_related("organisation").get(pk=server.pk)
    if not is_over(locked, over):
        return False
    RestorePoint.objects.filter(server=locked).exclude(state=State.GONE).update(state=State.GONE)
    return True


def _empty(store: Store, shelf: Shelf, over: datetime, *, dry_run: bool) -> Turn:
    """Remove all of a deleted server whose final backup has expired: restore points first, so that none is half."""
    found = sorted((each.name for each in store.listing()), key=lambda name: (not name.startswith(names.POINTS), name))
    if not dry_run:
        for begin in range(0, max(len(found), 1), AT_ONCE):
            if not _given_up(shelf.server, over):
                return Turn(expired=None, held="It is not to go any more: the server was made again, or is restored.")
            store.delete(found[begin : begin + AT_ONCE])
        with transaction.atomic():
            Shelf.objects.filter(pk=shelf.pk).update(
                next_turn=None, turned=database_time(), removed=database_time(), objects_there=0, bytes_there=0,
                bytes_waiting=0, fault="", fault_since=None,
            )  # fmt: skip
            record(
                actor=SYSTEM,
                verb="backups.expired",
                object=shelf.server,
                organisation_id=shelf.server.organisation_id,
                after={"store": shelf.store.code, "objects": len(found)},
            )
    expired = Expired(removed=tuple(found), removed_bytes=0, waiting=(), kept_points=(), blocked=())
    return Turn(expired=expired)


def _whose(server: Server) -> tuple[str, str]:
    return str(server.organisation_id), str(server.pk)
