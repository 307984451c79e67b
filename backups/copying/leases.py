"""Taking a copy's turn, keeping it while it runs, and writing to it only while it is ours.

As with operations (`provisioning.leases`), without a fence: two that copy the same at once harm nothing
(`engine.replicate`), they only waste. All times are the database's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Exists, F, OuterRef, QuerySet
from django.db.models.functions import Now

from backups.copying.models import Copy
from provisioning.keeping import kept
from provisioning.leases import free, from_now, holder

LEASE, RENEW_EVERY = timedelta(seconds=60), 10.0
FURTHEST = timedelta(minutes=5)
"""Further ahead than any lease goes: such a one was written before the clock was put back, and binds nobody."""
TURN_LIMIT = 24 * 3600.0
"""Seconds after which a turn that never ends loses its lease. One object is not cut in two, however large it is."""
LOOK = timedelta(hours=6)
"""So often both stores are compared also where nothing new was stored: either may have lost something."""
AWAY = ("StoreAway", "StoreFull", "StoreDenied", "StoreMissing", "StoreMisused")
"""Faults that every server's copy between these stores would meet."""
_LOCK = 0x636F7079  # "copy"


class LeaseLostError(Exception):
    """Somebody else has this copy now. Stop, and say nothing."""


def running() -> QuerySet[Copy]:
    """Return the copies that a worker is at."""
    return Copy.objects.filter(lease_until__gte=Now(), lease_until__lte=from_now(FURTHEST))


def due() -> QuerySet[Copy]:
    """Return the copies that a worker may take, who has waited longest first."""
    return Copy.objects.filter(free(FURTHEST), next_turn__lte=Now()).order_by("next_turn", "pk")


def quiet() -> QuerySet[Copy]:
    """Return the copies that are due and have nothing to do: their rows alone are moved on (`schedule.pass_quiet`)."""
    rows = due().filter(complete=True, repair=False, turned__gt=from_now(-LOOK))
    return rows.filter(seen_bytes=F("server__backups__stored_bytes"), server__deleted__isnull=True)


def waiting() -> QuerySet[Copy]:
    """Return the copies that are due for a worker's turn, who has waited longest first."""
    return due().exclude(Exists(quiet().filter(pk=OuterRef("pk"))))


def room() -> int:
    """Return how many more copies may run."""
    return max(int(settings.HEARTH["HEARTH_COPIES"]) - running().count(), 0)


def claim() -> Lease | None:
    """Take the copy that has waited longest; None where none is due or enough run.

    Of two stores between which a copy failed, one copy at a time is tried: a store that does not answer holds no more
    workers than that, and the others go on.
    """
    owner = holder()
    with transaction.atomic():
        with connection.cursor() as cursor:  # short, and one after the other: so the number that runs is never passed
            cursor.execute("select pg_advisory_xact_lock(%s)", [_LOCK])
        if not room():
            return None
        rows = waiting()
        for source, target in _in_trouble():
            rows = rows.exclude(source=source, target=target)
        found = rows.select_for_update(skip_locked=True, of=("self",)).first()
        if found is None:
            return None
        Copy.objects.filter(pk=found.pk).update(lease_owner=owner, lease_until=from_now(LEASE))
    copy = Copy.objects.select_related("server", "source", "target").get(pk=found.pk)
    return Lease(copy, owner)


def _in_trouble() -> set[tuple[Any, Any]]:
    """Return the pairs of stores between which copies fail, and one is being tried already."""
    faulty = Copy.objects.filter(fault_since__isnull=False, fault_code__in=AWAY).order_by()
    tried = set(running().values_list("source", "target").distinct())
    return tried & set(faulty.values_list("source", "target").distinct()) if tried else set()


@dataclass
class Lease:
    """The right to a copy's turn, as long as nobody took it over."""

    copy: Copy
    owner: str

    @contextmanager
    def write(self, **changes: Any) -> Iterator[None]:
        """Open a transaction that commits only while the lease is ours, write these columns and give it back."""
        with transaction.atomic():
            if not self._mine().update(lease_until=None, lease_owner="", **changes):
                raise LeaseLostError
            yield

    def kept(self, stop: Callable[[], None], again: Callable[[], None]) -> AbstractContextManager[None]:
        """Renew in the background while the block runs. Calls `again` each time, and `stop` when the lease is lost."""

        def renewed() -> bool:
            if not self._mine().update(lease_until=from_now(LEASE)):
                return False
            again()
            return True

        return kept(renewed, name=f"copy {self.copy.pk}", every=RENEW_EVERY, limit=TURN_LIMIT, lost=stop)

    def _mine(self) -> QuerySet[Copy]:
        return Copy.objects.filter(pk=self.copy.pk, lease_owner=self.owner)
