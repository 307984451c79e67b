"""Each server in each store is looked through once a day: is all there, and what has expired goes.

Level-triggered: a row's `next_turn` says when. Whoever claims it moves that on first, so a worker that dies costs an
hour; running twice harms nothing (`engine.expiry`).
"""

from __future__ import annotations

import hashlib
import uuid
from datetime import datetime, timedelta

from django.db import transaction
from django.utils import timezone

from backups.engine.stores.base import StoreError
from backups.models import Copy, RegionStores, ServerBackups, Shelf
from security.errors import SecurityError

EVERY = timedelta(days=1)
AGAIN = timedelta(hours=1)
"""After a look that failed or was cut off."""
AT_ONCE = 200


def make_missing() -> int:
    """Make the shelves that servers lack, in the stores of their regions; return how many."""
    made = 0
    for stores in RegionStores.objects.select_related("region"):
        here = ServerBackups.objects.filter(server__region=stores.region.code, reported__isnull=False)
        wanted = [(stores.first_id, here)]
        if stores.second_id:
            copied = Copy.objects.filter(target=stores.second_id, turned__isnull=False)
            wanted.append((stores.second_id, here.filter(server__in=copied.values("server"))))
        for store_id, rows in wanted:
            lacking = rows.exclude(server__shelves__store=store_id).values_list("server_id", flat=True)[:AT_ONCE]
            new = [Shelf(server_id=each, store_id=store_id, next_turn=first_turn(each)) for each in lacking]
            made += len(Shelf.objects.bulk_create(new, ignore_conflicts=True))
    return made


def first_turn(server: uuid.UUID) -> datetime:
    """Return a moment within the next hour: servers that came together are not looked through together."""
    share = int.from_bytes(hashlib.sha256(server.bytes).digest()[4:8], "big") / 2**32
    return timezone.now() + AGAIN * share


@transaction.atomic
def claim_due(limit: int = AT_ONCE) -> list[int]:
    """Return the shelves whose turn it is, and move them on. Reads one index, whatever the number of servers."""
    due = Shelf.objects.select_for_update(skip_locked=True).filter(next_turn__lte=timezone.now())
    found = list(due.order_by("next_turn").values_list("pk", flat=True)[:limit])
    Shelf.objects.filter(pk__in=found).update(next_turn=timezone.now() + AGAIN)
    return found


def look_soon(server: uuid.UUID) -> None:
    """A restore point came: have it looked at."""
    Shelf.objects.filter(server_id=server, next_turn__gt=timezone.now()).update(next_turn=timezone.now())


def failed(shelf: Shelf, error: StoreError | SecurityError) -> None:
    """Write down why a look failed; it is tried again in an hour."""
    at = timezone.now()
    Shelf.objects.filter(pk=shelf.pk).update(
        fault=str(error)[:1000], fault_since=shelf.fault_since or at, next_turn=at + AGAIN
    )
