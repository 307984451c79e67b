"""Write a server's phase and reason. The engine calls this at each turn of an operation, the observer at each look."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.utils import timezone

from provisioning.models import Operation, ServerStatus
from provisioning.providers.base import Observation
from provisioning.spec import ABOUT_BACKUPS
from provisioning.status import Phase, Situation, evaluate
from tenants.models import Server


def now_checked() -> dict[str, Any]:
    """Return the fields that say: the protocol checks, begun now, passed. Take them before the first question."""
    return {"checked": timezone.now(), "check_reason": "", "check_message": ""}


def deciding_operation(server: Server) -> Operation | None:
    """Return the open operation, or else the newest failed or cancelled one that still stands in the server's way."""
    newest = deciders().filter(server=server).order_by("-created").first()
    return newest if newest is not None and decides(newest, server) else None


def deciders() -> QuerySet[Operation]:
    """Return the operations of which each server's newest may decide how it is.

    What is about backups changes nothing of what was wanted: when it has ended well or was cancelled, what failed
    before it still stands. When it failed it stands itself, until something else was done.
    """
    newer = Operation.objects.filter(server=OuterRef("server"), created__gt=OuterRef("created"))
    aside = Q(kind__in=ABOUT_BACKUPS) & ~Q(state__in=Operation.OPEN)
    return Operation.objects.exclude(aside & (~Q(state=Operation.State.FAILED) | Exists(newer)))


def decides(newest: Operation, server: Server) -> bool:
    """Tell whether a server's newest operation is open, or ended without success for what is still wanted."""
    if newest.state in Operation.OPEN:
        return True
    return newest.generation == server.generation and newest.state != Operation.State.SUCCEEDED


def publish(server_id: uuid.UUID, *, seen: Observation | None = None) -> None:
    """Work out phase and reason anew after an operation changed. Call it inside the transaction of that change."""
    server = Server.objects.get(pk=server_id)
    status = ServerStatus.objects.select_for_update().get(server=server)
    verdict = evaluate(
        Situation(
            deleted=server.deleted is not None,
            operation=deciding_operation(server),
            applied_mode=status.applied.get("mode", ""),
            seen=seen,
            checked=seen is not None,
            check_reason=status.check_reason,
            check_message=status.check_message,
        )
    )
    if seen is None and verdict[1] == "Observing" and status.phase in (Phase.READY, Phase.SUSPENDED, Phase.DEGRADED):
        # Nothing was learnt about the server itself (a cancelled change, a new password): what was seen still holds.
        verdict = status.phase, status.reason, status.message
    write(status, verdict, now=timezone.now())


def write(status: ServerStatus, verdict: tuple[str, str, str], *, now: datetime, **facts: Any) -> bool:
    """Store a verdict with the facts it came from, unless somebody wrote newer news since `status` was read."""
    phase, reason, message = verdict
    ready_since = (status.ready_since or now) if phase == Phase.READY else None
    changed = ServerStatus.objects.filter(pk=status.pk, revision=status.revision).update(
        phase=phase, reason=reason[:40], message=message, ready_since=ready_since, revision=F("revision") + 1, **facts
    )
    return bool(changed)
