"""What goes by itself: archives whose time is over, and what exports that came to nothing left in the store."""

from __future__ import annotations

import logging
import uuid
from datetime import timedelta

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from backups import places
from backups.engine import names
from backups.engine.stores.base import StoreError
from backups.exporting.models import Export
from backups.models import Restore
from backups.restoring.upkeep import FAILED_STAYS
from provisioning.models import Operation
from security.errors import SecurityError

log = logging.getLogger(__name__)
AT_ONCE = 50
LATE = timedelta(hours=1)
"""A store that does not answer is asked again after so long, and so is one whose worker died over it."""


def ended(operation: Operation) -> None:
    """Hear that an operation ended, in its own transaction: what came to nothing goes, after it may be tried again."""
    if operation.kind != Operation.Kind.EXPORT or operation.state == Operation.State.SUCCEEDED:
        return
    stays = FAILED_STAYS if operation.state == Operation.State.FAILED else timedelta(0)
    Export.objects.filter(pk=operation.pk).update(keep_until=timezone.now() + stays, ready=None)


def sweep() -> int:
    """Remove archives whose time is over; return how many exports nothing is left of.

    Not while the instance is there: its engine may still be writing.
    """
    stores = list(_over().values_list("restore__store", flat=True).distinct())
    return sum(_sweep(store) for store in stores)


def _over() -> QuerySet[Export]:
    now = timezone.now()
    over = Export.objects.filter(keep_until__lte=now, removed__isnull=True, restore__holds=Restore.Holds.GONE)
    return over.exclude(restore__operation__state__in=Operation.OPEN)  # it is tried again


def _sweep(store: uuid.UUID) -> int:
    """Remove what lies in one store."""
    removed = 0
    for row in _claim(store):
        try:
            _remove(row)
        except (StoreError, SecurityError) as error:
            log.warning("The archive of export %s stays for now: %s", row.pk, error)
            later = timezone.now() + LATE
            Export.objects.filter(pk=row.pk).update(keep_until=later)  # behind those that wait with it
            if isinstance(error, StoreError) and error.retry:  # the store is away: the next might hang for as long
                _over().filter(restore__store=store).update(ready=None, keep_until=later)
                break
        else:
            removed += 1
    return removed


@transaction.atomic
def _claim(store: uuid.UUID) -> list[Export]:
    """Take what is over, so that no other worker begins with the same while a store hangs. Who dies gives it back."""
    rows = _over().filter(restore__store=store).order_by("keep_until").select_for_update(of=("self",), skip_locked=True)
    found = list(rows.select_related("restore__source", "restore__store")[:AT_ONCE])
    Export.objects.filter(pk__in=[row.pk for row in found]).update(ready=None, keep_until=timezone.now() + LATE)
    return found


def _remove(export: Export) -> None:
    row = export.restore
    with places.opened(row.store, row.source_id) as store:
        # By listing: an engine that was killed may have written one that nobody was told of.
        store.delete([each.name for each in store.listing(names.exports(str(row.pk)))])
    Export.objects.filter(pk=export.pk).update(removed=timezone.now())
