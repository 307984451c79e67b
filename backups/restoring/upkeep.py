"""What goes by itself: grants end with their operation, and instances that nobody needs any more are removed."""

from __future__ import annotations

import logging
import uuid
from datetime import timedelta

from django.db import transaction
from django.db.models import Exists, OuterRef
from django.utils import timezone

from audit.services import SYSTEM
from backups.models import RegionStores, Restore, ServerBackups
from backups.restoring import grants, verbs
from provisioning import services
from provisioning.models import Operation
from tenants.errors import Refused
from tenants.models import Server

log = logging.getLogger(__name__)
Holds, State = Restore.Holds, Operation.State
FAILED_STAYS = timedelta(days=1)
"""What a restore that failed had fetched: so long it can be tried again from there."""
AGAIN = timedelta(hours=1)
AT_ONCE, ENGINES_AT_ONCE = 50, 5
NEW = timedelta(hours=1)


def ended(operation: Operation) -> None:
    """Hear that an operation ended, in its own transaction."""
    if "restore" not in operation.wanted:
        return
    grants.revoke(operation)
    Restore.objects.filter(pk=operation.wanted["restore"]).update(
        failures=0, failed_bytes=0
    )  # who tries again starts anew
    if operation.state == State.SUCCEEDED:
        return
    own = Restore.objects.filter(pk=operation.pk)
    if operation.state == State.FAILED:
        own.filter(holds=Holds.UNFINISHED).update(keep_until=timezone.now() + FAILED_STAYS)
    elif own.filter(holds__in=(Holds.UNFINISHED, Holds.COPY)).update(keep_until=timezone.now()):
        # Cancelled in its trial it may have made a copy that nobody asked for.
        transaction.on_commit(lambda: _drop(operation.pk), robust=True)


def tidy() -> int:
    """Remove the instances whose time is over, and end grants that are left; return how many were begun with."""
    grants.revoke_left()
    over = Restore.objects.filter(keep_until__lte=timezone.now()).exclude(holds=Holds.GONE).order_by("keep_until")
    failed = Operation.objects.filter(
        server=OuterRef("source"), kind=Operation.Kind.DROP, state=State.FAILED, finished__gt=timezone.now() - AGAIN
    )
    return sum(_drop(pk) for pk in over.exclude(Exists(failed)).values_list("pk", flat=True)[:AT_ONCE])


def _drop(pk: uuid.UUID) -> bool:
    """Make the operation that removes an instance; not while something else is done with its server."""
    try:
        verbs.drop_copy(SYSTEM, restore=Restore.objects.get(pk=pk))
    except Refused as refusal:
        log.info("The copy of restore %s stays for now: %s", pk, refusal.message)
        return False
    return True


def begin_missing_engines() -> int:
    """Let servers that were made before there were backups have them; return how many were begun with.

    Each is configured once more, which makes its row: so it is never found again. A few at a time, since Synapse may
    start again by that.
    """
    here = RegionStores.objects.values("region__code")
    lacking = Server.objects.filter(
        region__in=here, deleted__isnull=True, desired=Server.Desired.RUNNING, backups__isnull=True,
        created__lt=timezone.now() - NEW, status__phase="ready",
    )  # fmt: skip
    return sum(_configure(server) for server in lacking.order_by("created")[:ENGINES_AT_ONCE])


def _configure(server: Server) -> bool:
    try:
        with transaction.atomic():
            ServerBackups.objects.get_or_create(server=server)
            services.begin(Operation.Kind.CONFIGURE, server=server)
    except Refused:
        return False
    return True
