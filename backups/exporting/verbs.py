"""The verbs: have an export made, remove it. Each is one transaction, or refuses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils import timezone

from audit.services import record
from backups.exporting.models import Export
from backups.models import Restore, Store
from backups.regions import is_first
from backups.restoring import choices
from backups.restoring.choices import Choice
from provisioning import services
from provisioning.fleet import exports
from provisioning.models import Operation, Region
from tenants.errors import Refused
from tenants.models import Server

MOST_KEPT = 3
"""Exports of one server: each may be as large as all its data."""
MOST_TABLES = 50
ROOM = re.compile(r"![^\s:]{1,200}(:[^\s]{1,250})?")
"""A room's id: with the server that made it, or since room version 12 without."""
TABLE = re.compile(r"[a-z_][a-z0-9_]{0,62}")
What, Format = Export.What, Export.Format


@transaction.atomic
def export(
    actor: Any,
    *,
    server: Server,
    what: str,
    room: str = "",
    tables: Sequence[str] = (),
    format: str = Format.CSV,  # noqa: A002 (the column's name)
    point: str = "",
    moment: datetime | None = None,
    store: Store | None = None,
) -> Export:
    """Have a backup given out in open formats, as an archive that only owners can download, for a while.

    Neither `point` nor `moment`: the latest that is backed up. The server runs on and is not touched. Raises `Refused`.
    """
    locked = Server.objects.select_for_update(of=("self",)).select_related("organisation").get(pk=server.pk)
    refuse_unfit(locked)
    latest = not point and moment is None
    choice = newest(locked, store) if latest else choices.choose(locked, point=point, moment=moment, store=store)
    _refuse_nonsense(what, room, tables, format)
    if kept(locked).count() >= MOST_KEPT:
        raise Refused(
            f"{MOST_KEPT} exports of this server are kept already. Nothing was changed. Download what you need, and "
            "remove one of them first."
        )
    operation = services.begin(Operation.Kind.EXPORT, server=locked, version=choice.version)
    _let_failed_go(locked)
    row = Restore.objects.create(
        operation=operation, source=locked, store=choice.store, point=choice.point, moment=choice.moment,
        mode=Restore.Mode.EXPORT, version=choice.version, asked_by=str(actor)[:254], total_bytes=choice.bytes,
    )  # fmt: skip
    made = Export.objects.create(
        restore=row,
        what=what,
        room=room if what == What.ROOM else "",
        tables=list(dict.fromkeys(tables)) if what == What.TABLES else [],
        format=format,
        latest=latest and not choice.point,
    )
    after = {"what": what, "room": made.room, "tables": made.tables, "moment": choice.moment.isoformat()}
    after |= {"point": row.point, "store": choice.store.code}
    record(actor=actor, verb="server.export", object=locked, organisation_id=locked.organisation_id, after=after)
    return made


@transaction.atomic
def remove(actor: Any, *, export: Export) -> Export:
    """Remove an export's archive before its time. The store lets go of it within minutes."""
    row = Export.objects.select_for_update(of=("self",)).select_related("restore__source").get(pk=export.pk)
    if row.is_open:
        raise Refused("This export is still being made. Nothing was changed. Cancel it on the server's page.")
    if row.removed is not None or (row.keep_until is not None and row.keep_until <= timezone.now()):
        raise Refused("This export was removed already. Nothing was changed.")
    row.keep_until = timezone.now()
    row.save(update_fields=["keep_until"])
    server = row.restore.source
    after = {"export": str(row.pk), "what": row.what}
    record(actor=actor, verb="server.export-remove", object=server, organisation_id=server.organisation_id, after=after)
    return row


@transaction.atomic
def downloaded(actor: Any, *, export: Export, begin: int) -> None:
    """Write down that somebody downloads an archive, from byte `begin` on."""
    server = export.restore.source
    if begin == 0:
        Export.objects.filter(pk=export.pk).update(downloads=F("downloads") + 1, downloaded=Now())
    after = {"export": str(export.pk), "what": export.what, "from": begin}
    verb, whose = "server.export-download", server.organisation_id
    record(actor=actor, verb=verb, object=server, organisation_id=whose, after=after)


def newest(server: Server, store: Store | None = None) -> Choice:
    """Return the latest that can be exported: the last second of the window, or where there is none the newest point.

    Of another store than the first that is its newest restore point: up to when it has changes, it alone can say.
    """
    windows = choices.moments(server)
    if windows and (store is None or is_first(server, store)):
        return choices.choose(server, moment=windows[0].until, store=store)
    points = choices.points(server)
    here = [each for each in points if each.copied] if store is not None else points
    if not here:
        raise Refused("There is no restore point yet, so nothing can be exported. That begins within minutes.")
    return choices.choose(server, point=here[0].identity, store=store)


def kept(server: Server) -> Any:
    """Return the exports of a server that take room in the store: those that are made, and whose archives are there.

    Not those that failed: what they fetched goes with the next one.
    """
    counts = Q(ready__isnull=False) | Q(restore__operation__state__in=Operation.OPEN)
    rows = Export.objects.filter(counts, restore__source=server, removed__isnull=True)
    return rows.select_related("restore__operation", "restore__source", "restore__store")


def refuse_unfit(server: Server) -> None:
    """Raise `Refused` for a server of which nothing can be exported now."""
    if server.desired == Server.Desired.DELETED or server.deleted:
        raise Refused(
            "This server is being deleted, so nothing is exported any more. Bring it back first, as long as it can be, "
            "export it, and delete it then."
        )
    region = Region.objects.filter(code=server.region).first()
    if region is not None and not exports(region):
        raise Refused(
            f"Servers in the region {region} can't be exported from their page yet. Nothing was changed, and the "
            "backups are safe. Ask support: they export it for you."
        )
    choices.refuse_unfit(server)


def _let_failed_go(server: Server) -> None:
    """Let go what earlier exports fetched that failed: nobody tries them again once another one was begun with."""
    failed = {"source": server, "mode": Restore.Mode.EXPORT, "operation__state": Operation.State.FAILED}
    rows = Restore.objects.filter(**failed).exclude(holds=Restore.Holds.GONE)
    rows.update(keep_until=timezone.now())


def _refuse_nonsense(what: str, room: str, tables: Sequence[str], format_: str) -> None:
    if what not in What.values or format_ not in Format.values:
        raise Refused("Choose what to export. Nothing was changed.", field="what")
    if what == What.ROOM and not ROOM.fullmatch(room):
        text = "Give the room's id, such as !abcdef:example.org. Clients show it in the room's settings. Nothing was"
        raise Refused(f"{text} changed.", field="room")
    if what == What.TABLES:
        wrong = [name for name in tables if not TABLE.fullmatch(name)]
        if wrong or not tables or len(tables) > MOST_TABLES:
            text = f"“{wrong[0][:80]}” is no name of a table." if wrong else f"Choose 1 to {MOST_TABLES} tables."
            raise Refused(f"{text} Nothing was changed.", field="tables")
