"""The verbs: bring a state back, switch to a copy, go back, remove a copy. Each is one transaction, or refuses."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db import transaction

from audit.services import record
from backups.models import Restore, Store
from backups.restoring import choices
from provisioning import services
from provisioning.models import Operation
from tenants.errors import Refused
from tenants.models import Server

MOST_KEPT = 3
"""Instances beside one server: each takes as much room as it."""
Kind, Mode, Holds = Operation.Kind, Restore.Mode, Restore.Holds


@transaction.atomic
def restore(
    actor: Any,
    *,
    server: Server,
    mode: str,
    point: str = "",
    moment: datetime | None = None,
    store: Store | None = None,
    confirm: str = "",
) -> Restore:
    """Bring a restore point or a moment back, into a new instance first; then in the server's place, or beside it.

    `confirm` repeats the server's name where it is to be replaced. The server is not touched before what was brought
    back has passed the protocol checks.
    """
    locked = _locked(server)
    choice = choices.choose(locked, point=point, moment=moment, store=store)
    if mode == Mode.SWITCH:
        _refuse_unconfirmed(locked, confirm)
    kept = Restore.objects.filter(source=locked).exclude(holds=Holds.GONE).exclude(mode=Mode.EXPORT)
    if kept.count() >= MOST_KEPT:
        raise Refused(
            f"{MOST_KEPT} copies are kept beside this server already. Nothing was changed. Remove one of them first."
        )
    kind = Kind.RESTORE if mode == Mode.SWITCH else Kind.COPY
    operation = services.begin(kind, server=locked, version=choice.version)
    row = Restore.objects.create(
        operation=operation,
        source=locked,
        store=choice.store,
        point=choice.point,
        moment=choice.moment,
        mode=mode,
        version=choice.version,
        asked_by=str(actor)[:254],
        total_bytes=choice.bytes,
    )
    after = {"mode": mode, "point": row.point, "moment": choice.moment.isoformat(), "version": row.version}
    after |= {"store": choice.store.code, "instance": str(row.instance)}
    record(actor=actor, verb="server.restore", object=locked, organisation_id=locked.organisation_id, after=after)
    return row


@transaction.atomic
def switch(actor: Any, *, restore: Restore, confirm: str) -> Operation:
    """Let the server go on with what a copy beside it holds. What it had is kept for a while."""
    row, server = _held(restore, Holds.COPY, "That copy is gone, or the server has it already. Nothing was changed.")
    _refuse_unconfirmed(server, confirm)
    return _begin(actor, Kind.SWITCH, row, server, row.version)


@transaction.atomic
def go_back(actor: Any, *, restore: Restore, confirm: str) -> Operation:
    """Let the server go on with what it had before it was restored. What was restored is kept in its place."""
    row, server = _held(restore, Holds.BEFORE, "What the server had before is not kept any more. Nothing was changed.")
    _refuse_unconfirmed(server, confirm)
    newer = Restore.objects.filter(source=server, holds=Holds.BEFORE, switched__gt=row.switched)
    if newer.exists():
        raise Refused(
            "The server was restored once more since then. Nothing was changed. Go back from the newest restore first."
        )
    return _begin(actor, Kind.GO_BACK, row, server, row.version_before)


@transaction.atomic
def drop_copy(actor: Any, *, restore: Restore) -> Operation:
    """Remove a copy, or what the server had before, with all its data."""
    row = Restore.objects.select_for_update(of=("self",)).get(pk=restore.pk)
    server = _locked(row.source)
    if row.holds == Holds.GONE:
        raise Refused("That copy was removed already. Nothing was changed.")
    return _begin(actor, Kind.DROP, row, server, "")


def _begin(actor: Any, kind: Operation.Kind, row: Restore, server: Server, version: str) -> Operation:
    operation = services.begin(kind, server=server, version=version, about=row.pk)
    Restore.objects.filter(pk=row.pk).update(called=False, progressed=None)
    after = {"restore": str(row.pk), "instance": str(row.instance), "holds": row.holds}
    record(
        actor=actor,
        verb=f"server.{kind.value.replace('-', '_')}",
        object=server,
        organisation_id=server.organisation_id,
        after=after,
    )
    return operation


def _held(restore: Restore, holds: str, otherwise: str) -> tuple[Restore, Server]:
    row = Restore.objects.select_for_update(of=("self",)).get(pk=restore.pk)
    server = _locked(row.source)
    if row.holds != holds:
        raise Refused(otherwise)
    choices.refuse_unfit(server)
    return row, server


def _locked(server: Server) -> Server:
    """Lock the server's row: verbs on one server take turns."""
    return Server.objects.select_for_update(of=("self",)).select_related("organisation").get(pk=server.pk)


def _refuse_unconfirmed(server: Server, confirm: str) -> None:
    if confirm.strip() != server.server_name:
        raise Refused(
            f"That is not the name of this server. Nothing was changed. Type {server.server_name} to go on.",
            field="confirm",
        )
