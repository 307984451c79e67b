"""What servers used, over time: one row a minute, kept for seven days."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from django.utils import timezone

from provisioning.models import Sample
from provisioning.providers.base import Observation

EVERY, KEPT = timedelta(seconds=60), timedelta(days=7)


def take(seen: Iterable[Observation], users: Mapping[str, int | None], now: datetime) -> int:
    """Write a sample for each server that has none from the last minute; return how many."""
    existing = [item for item in seen if item.exists]
    recent = set(
        Sample.objects.filter(server__in=[item.server_id for item in existing], at__gt=now - EVERY, at__lte=now)
        .values_list("server", flat=True)
        .distinct()
    )
    rows = [
        Sample(
            server_id=uuid.UUID(item.server_id),
            at=now,
            memory_bytes=item.memory_bytes,
            cpu_seconds=item.cpu_seconds,
            disk_bytes=item.disk_bytes,
            media_bytes=item.media_bytes,
            users=users.get(item.server_id),
        )
        for item in existing
        if uuid.UUID(item.server_id) not in recent
    ]
    Sample.objects.bulk_create(rows)
    return len(rows)


def prune(*, at_once: int = 10_000) -> int:
    """Remove samples older than seven days, a bounded number at a time."""
    old = Sample.objects.filter(at__lt=timezone.now() - KEPT).order_by("at").values_list("pk", flat=True)[:at_once]
    return Sample.objects.filter(pk__in=list(old)).delete()[0]
