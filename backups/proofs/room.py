"""Whether a throw-away instance has a place: how many there may be, and how full the disk gets with all under way."""

from __future__ import annotations

import shutil

from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from backups.models import Restore, RestorePoint
from backups.proofs.context import Missed
from backups.proofs.models import UNDER_WAY, Drill, Proof
from provisioning.models import Operation, Region

RESERVE = 5 * 2**30
"""Bytes of disk, or a tenth of it where that is less, that a test never takes."""
GROWTH = 1.3
"""A database on disk, and what replaying adds to it, over what its base backup held."""


def take_turns(region: Region) -> None:
    """Lock what two that look for room would both take: the region, and others on this machine's disk with it."""
    rows = Region.objects.select_for_update().filter(pk=region.pk)
    if region.provider == Region.Provider.LOCAL:
        rows = Region.objects.select_for_update().filter(provider=Region.Provider.LOCAL)
    list(rows.order_by("pk").values_list("pk"))


def has_room(region: Region, drill: Drill | None) -> bool:
    """Tell whether one more instance may run. A drill has a limit of its own."""
    rows = Proof.objects.filter(UNDER_WAY)
    if drill is not None:
        return rows.filter(drill=drill).count() < drill.at_once
    return rows.filter(region=region, drill=None).count() < int(settings.HEARTH["HEARTH_RECOVERY_TESTS"])


def has_disk(region: Region, point: RestorePoint) -> bool:
    """Tell whether it fits beside all that is still being brought back; False: once that has ended.

    Raises `Missed` where it would not fit by itself. Only of this machine Hearth knows how full the disk is.
    """
    if region.provider != Region.Provider.LOCAL:
        return True
    disk = shutil.disk_usage(settings.STATE)
    needed, reserve = _needed(point), min(disk.total // 10, RESERVE)
    if disk.free - needed < reserve:
        raise Missed(
            f"The disk has {disk.free // 2**20:,} MB left and the test needs {needed // 2**20:,}: it was not begun."
        )
    return disk.free - needed - promised() >= reserve


def promised() -> int:
    """Return how many bytes of this machine's disk recoveries that are under way have yet to write."""
    local = Region.objects.filter(provider=Region.Provider.LOCAL)
    tests = Proof.objects.filter(UNDER_WAY, result="", step__in=("recover", "follow"), region__in=local)
    found = sum(_left(row, Q(server=row.server_id, identity=row.point)) for row in tests)
    here = Restore.objects.filter(operation__state__in=Operation.OPEN, holds=Restore.Holds.UNFINISHED)
    for row in here.filter(operation__server__region__in=local.values("code"), begun__isnull=False):
        point = Q(identity=row.point) if row.point else Q(at__lte=row.moment or timezone.now())
        found += _left(row, point & Q(server=row.source_id))
    return found


def _left(row: Proof | Restore, wanted: Q) -> int:
    point = RestorePoint.objects.filter(wanted).order_by("-at").first()
    if point is None:
        return 0
    done = min(row.done_bytes / row.total_bytes, 1.0) if row.total_bytes else 0.0
    return int(_needed(point) * (1 - done))


def _needed(point: RestorePoint) -> int:
    return int(point.database_bytes * GROWTH) + point.media_bytes
