"""When copies are due. Level-triggered: each row's `next_turn` says it, and every server gets a row by itself.

A server whose engine has stored nothing since its copy was complete costs no call to a store, only its row.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from django.conf import settings
from django.db.models import F, OuterRef, Subquery
from django.db.models.functions import Coalesce, Greatest, Least
from django.utils import timezone

from backups.copying import leases, turns
from backups.copying.models import Copy
from backups.models import RegionStores, ServerBackups

AT_ONCE = 500
MOST_ROUNDS = 100
"""Of one pass. Most servers are quiet: 100,000 of them are due within `HEARTH_COPY_SECONDS`."""


def make_missing() -> int:
    """Give each server that has backups its copy to the second store of its region; return how many."""
    made = 0
    for stores in RegionStores.objects.filter(second__isnull=False).select_related("region"):
        rows = ServerBackups.objects.filter(server__region=stores.region.code, reported__isnull=False)
        pair = {"source_id": stores.first_id, "target_id": stores.second_id}
        known = Copy.objects.filter(**pair).values("server")
        lacking = rows.exclude(server__in=known).values_list("server_id", flat=True)[:AT_ONCE]
        new = [Copy(server_id=each, next_turn=timezone.now(), **pair) for each in lacking]
        made += len(Copy.objects.bulk_create(new, ignore_conflicts=True))
    return made


def pass_quiet() -> int:
    """Move on the copies that are due and have nothing to do, what they reached too; return how many."""
    passed = 0
    for _ in range(MOST_ROUNDS):
        found = _pass_some()
        passed += found
        if found < AT_ONCE:
            break
    return passed


def _pass_some() -> int:
    found = list(leases.quiet().values_list("pk", "server")[:AT_ONCE])
    until = Least(F("until"), Coalesce("media_until", "until"))
    own = ServerBackups.objects.filter(server__in=[server for _, server in found])
    own.update(copied_until=Greatest("copied_until", until))
    reached = Subquery(ServerBackups.objects.filter(server=OuterRef("server")).values("copied_until")[:1])
    every = timedelta(seconds=int(settings.HEARTH["HEARTH_COPY_SECONDS"]))
    Copy.objects.filter(pk__in=[pk for pk, _ in found]).update(next_turn=timezone.now() + every, reached=reached)
    return len(found)


def wanted() -> int:
    """Return how many workers could begin a copy now."""
    room = leases.room()
    return min(room, leases.waiting()[:room].count()) if room else 0


def copy_some(until: float, clock: Callable[[], float]) -> bool:
    """Take turns until `clock` is at `until`, whoever has waited longest first. Return whether there are more."""
    while clock() < until:
        lease = leases.claim()
        if lease is None:
            return False
        turns.run(lease)
    return True
