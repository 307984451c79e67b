"""What engines report, written down; and what they are to do. The only writer of these rows beside the verbs.

A report says how things are, so a report that comes twice, late or after another changes nothing for the worse: points
and lines are added or moved on, never back.
"""

from __future__ import annotations

import uuid
from datetime import timedelta

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from backups import policies, shelves
from backups.engine.hearth import Answer, LineReport, OrderReport, PointReport, Report
from backups.engine.hearth import Order as Wanted
from backups.models import Line, Order, RestorePoint, ServerBackups
from security.keyring.seams import latest
from tenants.models import Server

State = Order.State
MOST_POINTS = 50
"""Restore points in one report; the rest is told by the next."""


class ForeignReport(Exception):
    """A report speaks of another server than the one that its certificate names."""


@transaction.atomic
def take(server_id: uuid.UUID, report: Report) -> Answer:
    """Write a report down and return the orders. Raises `ForeignReport`, and `Server.DoesNotExist`: it is gone."""
    server = Server.objects.select_related("organisation").get(pk=server_id, deleted__isnull=True)
    if any((each.manifest.server, each.manifest.organisation) != _names(server) for each in report.points):
        raise ForeignReport("A restore point in this report is another server's. Nothing was written down.")
    row = ServerBackups.objects.select_for_update(of=("self",)).get_or_create(server=server)[0]
    for point in report.points[:MOST_POINTS]:
        _take_point(server, point)
    for line in report.lines:
        _take_line(server, line)
    for order in report.orders:
        _take_order(server, order)
    _take_state(row, report)
    known = tuple(each.manifest.id for each in report.points[:MOST_POINTS])
    return Answer(orders=_orders(server), known=known)


def _names(server: Server) -> tuple[str, str]:
    return str(server.pk), str(server.organisation_id)


def _take_point(server: Server, told: PointReport) -> None:
    manifest = told.manifest
    policy = policies.policy_of(server)
    days = policy.final_days if manifest.kind == "final" else policy.retention_days
    row, made = RestorePoint.objects.get_or_create(
        server=server,
        identity=manifest.id,
        defaults={
            "kind": manifest.kind,
            "at": manifest.at,
            "line": manifest.line,
            "database_bytes": manifest.database_bytes,
            "media_bytes": manifest.media_bytes,
            "media_files": manifest.media_files,
            "stored_bytes": told.stored_bytes,
            "synapse_version": manifest.synapse_version,
            "signing_key_id": manifest.signing_key_id,
            "seconds": told.seconds,
            "keep_until": manifest.at + timedelta(days=days),
        },
    )
    if told.listed or told.damage:
        state = RestorePoint.State.DAMAGED if told.damage else row.state
        RestorePoint.objects.filter(pk=row.pk).exclude(state=RestorePoint.State.GONE).update(
            state=state, damage=told.damage or row.damage, listed=Now() if told.listed else row.listed
        )
    if made:
        shelves.look_soon(server.pk)
        ServerBackups.objects.filter(server=server).update(
            next_base=policies.next_base(policy, server.pk, timezone.now())
        )


def _take_line(server: Server, told: LineReport) -> None:
    row, _ = Line.objects.get_or_create(server=server, identity=told.id)
    row.begun = told.begun or row.begun
    row.until = latest([row.until, told.until])
    row.ended = told.ended or row.ended
    row.moments = max(row.moments, told.moments)
    row.save(update_fields=["begun", "until", "ended", "moments"])


def _take_order(server: Server, told: OrderReport) -> None:
    rows = Order.objects.filter(pk=told.id, server=server, state__in=(State.WAITING, State.TAKEN))
    progress = {"done_bytes": told.done_bytes, "total_bytes": told.total_bytes}
    if told.state == "taken":
        rows.filter(state=State.WAITING).update(state=State.TAKEN, taken=Now())
        rows.update(**progress)
    else:
        rows.update(state=told.state, ended=Now(), point=told.point, error=told.error, **progress)


def _take_state(row: ServerBackups, report: Report) -> None:
    writing = next((each for each in reversed(report.lines) if not each.ended), None)
    fault = report.fault
    ServerBackups.objects.filter(pk=row.pk).update(
        reported=Now(),
        line=writing.id if writing else F("line"),
        begun=writing.begun if writing else F("begun"),
        until=latest([row.until, writing.until]) if writing else F("until"),
        media_until=latest([row.media_until, report.media_until]),
        spool_bytes=report.spool_bytes,
        stored_bytes=report.stored_bytes,
        fault_code=fault.code if fault else "",
        fault=fault.text if fault else "",
        fault_since=fault.since if fault else None,
    )


def _orders(server: Server) -> tuple[Wanted, ...]:
    rows = Order.objects.filter(server=server, state__in=(State.WAITING, State.TAKEN)).order_by("made")
    # A final one too is told as `backup`: a removal can be taken back until its last step, and an engine that rests
    # would then leave the server without backups. What comes after the final backup is stored until the server stops.
    return tuple(Wanted(id=row.pk, kind="backup", reason=row.reason) for row in rows)
