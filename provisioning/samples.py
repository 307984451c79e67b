"""What servers used, over time: one row a minute, kept for seven days."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils import timezone

from provisioning.models import Sample
from provisioning.providers.base import Observation

EVERY, KEPT = timedelta(seconds=60), timedelta(days=7)
GAP = timedelta(minutes=10)
"""A rate that was not seen for so long says nothing about the time in between."""


@dataclass(frozen=True)
class Counted:
    """What a homeserver itself counted last; None where it was not asked or did not say."""

    users: int | None = None
    media_bytes: int | None = None


def take(seen: Iterable[Observation], counted: Mapping[str, Counted], now: datetime) -> int:
    """Write a sample for each server that has none from the last minute; return how many."""
    existing = [item for item in seen if item.exists]
    recent = set(
        Sample.objects.filter(server__in=[item.server_id for item in existing], at__gt=now - EVERY, at__lte=now)
        .values_list("server", flat=True)
        .distinct()
    )
    due = [item for item in existing if uuid.UUID(item.server_id) not in recent]
    before = _before([uuid.UUID(item.server_id) for item in due if item.cpu_cores is not None], now)
    Sample.objects.bulk_create(
        _sample(item, counted.get(item.server_id, Counted()), before.get(uuid.UUID(item.server_id)), now)
        for item in due
    )
    return len(due)


def _sample(item: Observation, counted: Counted, before: Sample | None, now: datetime) -> Sample:
    return Sample(
        server_id=uuid.UUID(item.server_id),
        at=now,
        memory_bytes=item.memory_bytes,
        cpu_seconds=_cpu_seconds(item, before, now),
        disk_bytes=item.disk_bytes,
        media_bytes=counted.media_bytes if item.media_bytes is None else item.media_bytes,
        users=counted.users,
    )


def _cpu_seconds(item: Observation, before: Sample | None, now: datetime) -> float | None:
    """Return the counter: as measured, or the last one and what the rate adds. After a gap it begins anew."""
    if item.cpu_cores is None:
        return item.cpu_seconds
    if before is None or before.cpu_seconds is None:
        return 0.0
    return before.cpu_seconds + item.cpu_cores * (now - before.at).total_seconds()


def _before(server_ids: list[uuid.UUID], now: datetime) -> dict[uuid.UUID, Sample]:
    """Return each server's newest sample of the last minutes. Older ones are not looked for: there are thousands."""
    rows = Sample.objects.filter(server__in=server_ids, at__gt=now - GAP, at__lte=now)
    return {row.server_id: row for row in rows.order_by("server_id", "-at").distinct("server_id")}


def prune(*, at_once: int = 10_000) -> int:
    """Remove samples older than seven days, a bounded number at a time."""
    old = Sample.objects.filter(at__lt=timezone.now() - KEPT).order_by("at").values_list("pk", flat=True)[:at_once]
    return Sample.objects.filter(pk__in=list(old)).delete()[0]
