"""Find work that no message spoke of. Everything here reads indexes alone, whatever the number of servers."""

from __future__ import annotations

import uuid

import structlog
from django.db import DatabaseError
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.db.models.functions import Now

from provisioning import services
from provisioning.leases import due
from provisioning.models import Operation
from provisioning.spec import Kind
from tenants.models import Server

AT_ONCE = 200
State = Operation.State
log = structlog.get_logger()


def sweep() -> list[uuid.UUID]:
    """Make the operations that are missing; return the ones that a worker may take now, longest due first."""
    for server_id in [
        *drifted().values_list("pk", flat=True)[:AT_ONCE],
        *expired().values_list("pk", flat=True)[:AT_ONCE],
    ]:
        try:
            services.reconcile(server_id)
        except DatabaseError:
            raise
        except Exception:
            # One server that can't be understood must not hide the others.
            log.exception("reconcile_failed", server=str(server_id))
    waiting = Operation.objects.filter(due()).order_by("run_after")
    return list(waiting.values_list("pk", flat=True)[:AT_ONCE])


def drifted() -> QuerySet[Server]:
    """Return servers whose wanted generation is newer than the one carried out, and which nobody works on."""
    behind = Q(status__isnull=True) | Q(status__observed_generation__lt=F("generation"))
    return _unattended(Server.objects.filter(behind, deleted__isnull=True), ~Q(kind=""))


def expired() -> QuerySet[Server]:
    """Return deleted servers whose grace period is over."""
    over = Server.objects.filter(desired=Server.Desired.DELETED, deleted__isnull=True, delete_after__lte=Now())
    return _unattended(over, Q(kind=Kind.DELETE))


def _unattended(servers: QuerySet[Server], kinds: Q) -> QuerySet[Server]:
    operations = Operation.objects.filter(server=OuterRef("pk"))
    ended = operations.filter(kinds, generation=OuterRef("generation"), state__in=(State.FAILED, State.CANCELLED))
    busy = operations.filter(state__in=Operation.OPEN)
    return servers.filter(~Exists(busy), ~Exists(ended)).order_by()
