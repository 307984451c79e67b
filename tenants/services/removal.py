"""The end of a server's row: said by whoever removed the server, never by a person."""

from __future__ import annotations

from django.db import transaction
from django.utils import timezone

from audit.services import SYSTEM, record
from tenants.models import Server


@transaction.atomic
def mark_deleted(*, server: Server) -> bool:
    """Note that everything of the server is gone; its name is free again. False when it is wanted after all."""
    locked = Server.objects.select_for_update().get(pk=server.pk)
    if locked.desired != Server.Desired.DELETED or locked.deleted:
        return False
    locked.deleted = timezone.now()
    locked.save(update_fields=["deleted"])
    record(actor=SYSTEM, verb="server.removed", object=locked, organisation_id=locked.organisation_id)
    return True
