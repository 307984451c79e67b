"""What staff can have done with copies."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from audit.services import record
from backups.copying.models import Copy
from backups.models import RegionStores, RestorePoint, ServerBackups
from tenants.errors import Refused

BATCH = 1000


@transaction.atomic
def repair_first(actor: Any, *, stores: RegionStores) -> int:
    """Bring what the second store has of a region's servers back into the first, which was lost; return how many.

    What the first still has, or got since, stays as it is. Each server's ends by itself when nothing lacks.
    """
    if stores.second_id is None:
        raise Refused("This region has no second store, so there is nothing to repair the first from.")
    _refuse_unchecked(stores)
    pair = {"source_id": stores.second_id, "target_id": stores.first_id}
    rows = ServerBackups.objects.filter(server__region=stores.region.code).values_list("server_id", flat=True)
    new = [Copy(server_id=each, repair=True, next_turn=timezone.now(), **pair) for each in rows]
    Copy.objects.filter(repair=True, **pair).update(next_turn=timezone.now(), turned=None, complete=False)
    Copy.objects.bulk_create(new, BATCH, ignore_conflicts=True)
    after = {"from": str(stores.second), "to": stores.first.code, "servers": len(new)}
    record(actor=actor, verb="backups.repair", object=stores.region, after=after)
    return len(new)


@transaction.atomic
def copy_anew(actor: Any, *, stores: RegionStores) -> int:
    """Copy everything of a region's servers to its second store, which was lost or replaced; return how many."""
    if stores.second_id is None:
        raise Refused("This region has no second store. Give it one first.")
    if not stores.second or not stores.second.checked or stores.second.fault:
        raise Refused(f"Test the connection to {stores.second} first. Nothing was changed.")
    count = begin_anew(stores)
    after = {"to": stores.second.code, "servers": count}
    record(actor=actor, verb="backups.copy-anew", object=stores.region, after=after)
    return count


@transaction.atomic
def turn_now(actor: Any, *, copies: QuerySet[Copy]) -> int:
    """Let these copies' turns come now, those that have ended too; return how many."""
    for copy in copies.select_related("server", "target"):
        after, owner = {"to": copy.target.code}, copy.server.organisation_id
        record(actor=actor, verb="backups.copy-now", object=copy.server, organisation_id=owner, after=after)
    return copies.update(next_turn=timezone.now(), seen_bytes=None)  # compared, though nothing new is known of


def begin_anew(stores: RegionStores) -> int:
    """Take nothing of what was said about the region's second store for true until it was looked at again."""
    code = stores.region.code
    Copy.objects.filter(server__region=code, repair=False).exclude(
        source=stores.first_id, target=stores.second_id
    ).delete()
    rows = Copy.objects.filter(server__region=code, repair=False)
    rows.update(turned=None, complete=False, reached=None, next_turn=timezone.now(), seen_bytes=None)
    ServerBackups.objects.filter(server__region=code).update(copied_until=None, copy_lag_bytes=0)
    RestorePoint.objects.filter(server__region=code, copied__isnull=False).update(copied=None)
    return rows.count()


def _refuse_unchecked(stores: RegionStores) -> None:
    for each in (stores.first, stores.second):
        if each is not None and (each.checked is None or each.fault):
            raise Refused(
                f"Test the connection to {each} first: it must be there, and it must be the right one. Nothing was "
                "changed."
            )
