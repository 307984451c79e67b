"""What engines are asked to do: by schedule, by a person, by another part of Hearth."""

from __future__ import annotations

import uuid
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models.functions import Now
from django.utils import timezone

from audit.services import record
from backups import policies
from backups.models import Order, ServerBackups
from tenants.errors import Refused
from tenants.models import Server

AT_ONCE = 200
BACKUP, FINAL = "backup", "final"
OPEN = (Order.State.WAITING, Order.State.TAKEN)


def place(server: Server, kind: str, reason: str) -> Order:
    """Ask the engine of `server` for a backup. One that is open already is returned in place of a second."""
    try:
        with transaction.atomic():
            return Order.objects.create(server=server, kind=kind, reason=reason)
    except IntegrityError:
        return Order.objects.get(server=server, kind=kind, state__in=OPEN)


@transaction.atomic
def back_up_now(actor: Any, *, server: Server) -> Order:
    """Have a restore point taken at once. Refused where nothing is there to be backed up."""
    if server.deleted or not ServerBackups.objects.filter(server=server).exists():
        raise Refused("This server has no backups yet: its engine has not reported. Try again in a few minutes.")
    order = place(server, BACKUP, "manual")
    record(actor=actor, verb="backups.now", object=order, organisation_id=server.organisation_id)
    return order


def place_due() -> int:
    """Order the base backups that are due; return how many. Reads one index, whatever the number of servers."""
    due = ServerBackups.objects.filter(next_base__lte=Now(), server__deleted__isnull=True).order_by("next_base")
    found = due.select_related("server")[:AT_ONCE]
    return sum(_place_due(row.server, row.pk) for row in found)


@transaction.atomic
def _place_due(server: Server, pk: uuid.UUID) -> int:
    row = ServerBackups.objects.select_for_update(skip_locked=True).filter(pk=pk, next_base__lte=Now()).first()
    if row is None:
        return 0  # another worker is at it
    place(server, BACKUP, "daily")
    # Moved on by what is due, not by what was done: an engine that is away finds one order, not one for each day.
    row.next_base = policies.next_base(policies.policy_of(server), server.pk, timezone.now())
    row.save(update_fields=["next_base"])
    return 1
