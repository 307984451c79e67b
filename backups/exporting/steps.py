"""What the steps of an export do. Between them is `recover`, as in every restore. Each may be done again."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.db.models.functions import Now
from django.utils import timezone

from audit.services import SYSTEM, record
from backups.exporting import verbs
from backups.exporting.models import Export
from backups.restoring import choices
from backups.restoring import steps as restoring
from provisioning.providers.base import ProviderError
from provisioning.steps import Context
from tenants.errors import Refused
from tenants.models import Server


def look(context: Context) -> None:
    """Look again whether it can be exported: what was whole when it was asked for may be damaged by now."""
    row = restoring.row_of(context)
    server = Server.objects.select_related("organisation").get(pk=row.source_id)
    try:
        verbs.refuse_unfit(server)
        choices.choose(server, point=row.point, moment=None if row.point else row.moment, store=row.store)
    except Refused as refusal:
        raise ProviderError(refusal.message, code="NotRestorable", retry=False) from None
    at = f"{row.moment:%Y-%m-%d %H:%M:%S} UTC"
    context.log(f"What the server was at {at} is exported from “{row.store}”. The server itself is not touched.")


def keep(context: Context) -> None:
    """Write down what archive came of it, and remove what it was made with."""
    row = restoring.row_of(context)
    export, found = Export.objects.get(restore=row), row.evidence
    if not found.get("object"):
        text = "The engine did not say where the archive is. The server was not touched. Try again."
        raise ProviderError(text, code="ExportFailed", retry=False)
    until = timezone.now() + timedelta(days=settings.HEARTH["HEARTH_EXPORT_KEEP_DAYS"])
    with context.transaction():
        Export.objects.filter(pk=export.pk).update(
            object=found["object"], key=found["key"], stored_bytes=int(found["stored"]), bytes=int(found["plain"]),
            files=int(found["files"]), ready=Now(), keep_until=until,
        )  # fmt: skip
        if export.ready is None:
            after = {"export": str(export.pk), "files": found["files"], "bytes": found["plain"]}
            verb, whose = "server.export-ready", row.source.organisation_id
            record(actor=SYSTEM, verb=verb, object=row.source, organisation_id=whose, after=after)
    restoring.remove_instance(context, row)
    context.log(f"{found['files']} files are in the archive. It can be downloaded until {until:%Y-%m-%d} (UTC).")
