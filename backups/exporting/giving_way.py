"""An export is a server's one open operation, perhaps for hours. What can't wait for that comes first."""

from __future__ import annotations

import contextlib

from django.utils import timezone

from backups.models import Restore
from provisioning.fleet import may_federate
from provisioning.models import Operation, ServerStatus
from provisioning.providers.base import ProviderError
from provisioning.spec import decide, wanted
from provisioning.steps import Context
from tenants.models import Server

FIRST = (Operation.Kind.SUSPEND, Operation.Kind.RESUME, Operation.Kind.UPGRADE)
"""Whoever suspends a server has a reason, and an upgrade may be one for security. The rest can wait, or cancel."""


def give_way(context: Context, row: Restore) -> None:
    """End the export where its server is to be suspended, resumed or upgraded. Raises `ProviderError`."""
    server = Server.objects.get(pk=context.server.pk)
    if server.generation <= context.operation.generation:
        return
    applied = ServerStatus.objects.values_list("applied", flat=True).get(server=server)
    if decide(wanted(server, federation=may_federate(server), now=timezone.now()), applied) not in FIRST:
        return
    with contextlib.suppress(ProviderError):  # one that goes on all the same has a grant that ends now
        context.provider.cancel_recovery(str(row.instance), fence=context.fence)
    raise ProviderError(
        "The server is to be suspended, resumed or upgraded, and that comes first, so the export was given up. The "
        "server's data and backups are safe. Export again when that is done.",
        code="ServerChanged",
        retry=False,
    )
