"""The backups' numbers for Prometheus. Each is a sum over one small or indexed table."""

from __future__ import annotations

from django.db.models import Count, Max, Min, Sum
from django.utils import timezone

from backups.models import Alarm, ServerBackups, Shelf
from observability.gauges import Rows, gauge
from tenants.models import Server


@gauge("hearth_backup_alarms", "Servers with something wrong about their backups, by cause.", ["cause"])
def alarms() -> Rows:
    """Count what the observer found; each cause is there also when nothing is in it."""
    counts = dict(Alarm.objects.order_by().values_list("cause").annotate(Count("pk")))
    return [([cause], counts.get(cause, 0)) for cause in Alarm.Cause.values]


@gauge("hearth_backup_rpo_seconds", "Of the server that is furthest behind: how much work a loss would cost now.")
def rpo() -> Rows:
    """Look at running servers alone."""
    rows = ServerBackups.objects.filter(server__deleted__isnull=True, server__desired=Server.Desired.RUNNING)
    oldest = rows.aggregate(at=Min("until"))["at"]
    return [([], max((timezone.now() - oldest).total_seconds(), 0.0) if oldest else 0.0)]


@gauge("hearth_backup_copy_lag_bytes", "Of the server that is furthest behind: what the second store lacks.")
def copy_lag() -> Rows:
    """Look at all servers."""
    return [([], ServerBackups.objects.aggregate(most=Max("copy_lag_bytes"))["most"] or 0)]


@gauge("hearth_backup_stored_bytes", "What lies in a store, as the last look through it found.", ["store"])
def stored() -> Rows:
    """Add up what servers have there."""
    rows = Shelf.objects.order_by().values_list("store__code").annotate(Sum("bytes_there"))
    return [([store], size or 0) for store, size in rows]


@gauge("hearth_backup_waiting_bytes", "What has expired in a store and is removed within a day.", ["store"])
def waiting() -> Rows:
    """Add up what servers have there."""
    rows = Shelf.objects.order_by().values_list("store__code").annotate(Sum("bytes_waiting"))
    return [([store], size or 0) for store, size in rows]
