"""The backups' numbers for Prometheus. Each is a sum over one small or indexed table."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db.models import Count, DurationField, ExpressionWrapper, F, Max, Min, Q, Sum
from django.db.models.functions import Coalesce
from django.utils import timezone

from backups.copying import leases
from backups.models import Alarm, Copy, Drill, Proof, RegionStores, ServerBackups, Shelf
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


LATE = (60, 300, 900, 3600, 4 * 3600, 24 * 3600)
"""Seconds. 900 is what is promised for the day on which a region is lost."""
WORST = 20


@gauge(
    "hearth_backup_copy_late_servers", "Servers whose second store is more than so many seconds behind.", ["seconds"]
)
def copies_late() -> Rows:
    """Count servers. One number for each server would be 100,000 series in each scrape; the worst have theirs."""
    counts = {str(each): Count("pk", filter=Q(lag__gt=timedelta(seconds=each))) for each in LATE}
    return [([seconds], count) for seconds, count in _copied().aggregate(**counts).items()]


@gauge("hearth_backup_copy_lag_seconds", "How far the second store of a server is behind: the worst ones.", ["server"])
def copies_worst() -> Rows:
    """Name the servers whose second stores are furthest behind."""
    worst = _copied().filter(until__gt=F("begun")).order_by("-lag").values("server", "lag")[:WORST]
    return [([str(each["server"])], max(each["lag"].total_seconds(), 0.0)) for each in worst]


@gauge("hearth_backup_copy_waiting_seconds", "How long the copy that is due for longest has waited for a worker.")
def copies_waiting() -> Rows:
    """Tell whether there are enough workers for copies (HEARTH_COPIES)."""
    oldest = leases.due().values_list("next_turn", flat=True).first()
    return [([], max((timezone.now() - oldest).total_seconds(), 0.0) if oldest else 0.0)]


@gauge("hearth_backup_copies_at_fault", "Copies that can't go on, by why.", ["code"])
def copies_at_fault() -> Rows:
    """Count copies whose last turn failed."""
    rows = Copy.objects.filter(fault_since__isnull=False).order_by().values_list("fault_code").annotate(Count("pk"))
    return [([code], count) for code, count in rows]


def _copied() -> Any:
    """Return the servers that have a second store, and how far behind it is."""
    regions = RegionStores.objects.filter(second__isnull=False).values("region__code")
    rows = ServerBackups.objects.filter(server__deleted__isnull=True, server__region__in=regions, begun__isnull=False)
    lag = ExpressionWrapper(F("until") - Coalesce("copied_until", "begun"), output_field=DurationField())
    return rows.annotate(lag=lag)


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


@gauge("hearth_backup_proofs", "Full reads and recovery tests that ended within a week.", ["kind", "result"])
def proofs() -> Rows:
    """Count by kind and result; each pair is there also when nothing is in it."""
    kinds = (Proof.Kind.READING, Proof.Kind.RECOVERY)
    recent = Proof.objects.filter(begun__gt=timezone.now() - timedelta(days=7), kind__in=kinds).exclude(result="")
    counts = {(kind, result): n for kind, result, n in recent.order_by().values_list("kind", "result", Count("pk"))}
    return [([kind, result], counts.get((kind, result), 0)) for kind in kinds for result in Proof.Result.values]


@gauge("hearth_backup_rto_seconds", "The longest that a recovery test of the last week took until the server was back.")
def rto() -> Rows:
    """Look at tests that brought a server back."""
    recent = Proof.objects.filter(begun__gt=timezone.now() - timedelta(days=7), kind=Proof.Kind.RECOVERY)
    return [([], recent.aggregate(most=Max("rto_seconds"))["most"] or 0.0)]


@gauge("hearth_backup_drills_failed", "Drills of the last quarter that failed, or did not take place.")
def drills_failed() -> Rows:
    """Count them."""
    recent = Drill.objects.filter(ended__gt=timezone.now() - timedelta(days=92))
    return [([], recent.filter(result__in=(Drill.Result.FAILED, Drill.Result.MISSED)).count())]
