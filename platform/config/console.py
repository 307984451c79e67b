"""The first page of the staff console: a few figures that say whether somebody has to act."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.apps import apps
from django.urls import reverse
from django.utils import timezone

RECENT = timedelta(days=1)
QUARTER = timedelta(days=92)


@dataclass(frozen=True)
class Tile:
    """One figure, with the list behind it."""

    label: str
    count: int
    url: str
    bad: bool = False
    """Whether the figure should be zero."""


def tiles() -> list[Tile]:
    """Count what staff look at first: a few small queries."""
    from security.keyring import report  # noqa: PLC0415 (the console is made while the apps are still loading)

    overdue = report.overdue_keks().count() + report.overdue_roots().count()
    recent = timezone.now() - RECENT
    unwell = {"phase__in": ["degraded", "failed"]}
    return [
        _tile("Servers not well", "provisioning.serverstatus", "phase__in=degraded,failed", bad=True, **unwell),
        _tile(
            "Operations failed in a day",
            "provisioning.operation",
            "state__exact=failed",
            bad=True,
            state="failed",
            created__gte=recent,
        ),
        _tile("Alarms about backups", "backups.alarm", bad=True),
        _tile(
            "Drills that did not pass",
            "backups.drill",
            "result__in=failed,missed",
            bad=True,
            result__in=["failed", "missed"],
            ended__gte=timezone.now() - QUARTER,
        ),
        _tile("Mails given up", "notifications.mail", "state__exact=failed", bad=True, state="failed"),
        Tile("Keys overdue", overdue, reverse("admin:security_keyencryptionkey_changelist"), bad=True),
        _tile("Servers", "tenants.server", "deleted__isempty=1", deleted__isnull=True),
        _tile("Organisations", "tenants.organisation"),
        _tile("People", "accounts.user"),
    ]


def _tile(label: str, model: str, query: str = "", *, bad: bool = False, **which: Any) -> Tile:
    # The console is made while the apps are still loading, so models are looked up when they are needed.
    count = apps.get_model(model).objects.filter(**which).count()
    path = reverse(f"admin:{model.replace('.', '_')}_changelist")
    return Tile(label, count, f"{path}?{query}", bad)
