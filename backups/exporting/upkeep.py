"""What goes by itself: archives whose time is over, and what exports that came to nothing left in the store."""

from __future__ import annotations

import logging
from datetime import timedelta

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
"""A store that does not answer is asked again after so long."""


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
    now = timezone.now()
    over = Export.objects.filter(keep_until__lte=now, removed__isnull=True, restore__holds=Restore.Holds.GONE)
    rows = over.select_related("restore__source", "restore__store").order_by("keep_until")[:AT_ONCE]
    return sum(_remove(row) for row in rows)


def _remove(export: Export) -> bool:
    row = export.restore
    try:
        with places.opened(row.store, row.source_id) as store:
            # By listing: an engine that was killed may have written one that nobody was told of.
            store.delete([each.name for each in store.listing(names.exports(str(row.pk)))])
    except (StoreError, SecurityError) as error:
        log.warning("The archive of export %s stays for now: %s", export.pk, error)
        Export.objects.filter(pk=export.pk).update(ready=None, keep_until=timezone.now() + LATE)
        return False
    Export.objects.filter(pk=export.pk).update(removed=timezone.now())
    return True
