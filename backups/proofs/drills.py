"""Drills: a region is taken as lost, and its servers are brought back elsewhere in the order that customers pay for.

Each server is a recovery test of its own (`recovery`), from the second store where there is one, that may ask nothing
of the living server. The clock of all runs from the same moment, so waiting for one's turn counts. A drill that does
not begin, or that somebody breaks off, has failed, and that is shown.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from typing import Any

from django.db import transaction
from django.db.models import F, QuerySet
from django.urls import reverse
from django.utils import timezone

from accounts.alerts import mail_staff
from audit.services import SYSTEM, record
from backups.models import RegionStores, RestorePoint, Store
from backups.proofs import ends, schedule
from backups.proofs.models import Drill, Proof
from notifications.links import public_url
from provisioning.models import Region
from security.errors import SecurityError
from tenants.errors import Refused
from tenants.models import Server

TOO_LATE = timedelta(days=1)
"""A drill that has not begun so long after its time has not taken place."""
LONGEST = timedelta(days=2)
Result = Drill.Result
log = logging.getLogger(__name__)


@transaction.atomic
def plan(actor: Any, *, drill: Drill, servers: Iterable[Server] = ()) -> Drill:
    """Plan a drill. It begins by itself when its time has come."""
    chosen = list(servers)
    refuse(drill, chosen)
    drill.save(force_insert=True)
    drill.servers.set(chosen)
    after = {"region": drill.region.code, "target": drill.target.code, "planned": drill.planned.isoformat()}
    record(actor=actor, verb="backups.drill-plan", object=drill, after=after | {"servers": len(chosen)})
    return drill


def refuse(drill: Drill, servers: Iterable[Server]) -> None:
    """Raise `Refused` for a drill that could not begin."""
    if not RegionStores.objects.filter(region=drill.region).exists():
        raise Refused("That region has no store for backups, so nothing of it can be brought back.", field="region")
    if any(each.region != drill.region.code for each in servers):
        raise Refused("All servers of a drill are of the region that is taken as lost.", field="servers")
    if drill.planned < timezone.now() - timedelta(hours=1):
        raise Refused("That time has passed. Choose a later one.", field="planned")


@transaction.atomic
def break_off(actor: Any, *, drill: Drill) -> Drill:
    """End a drill that is planned or runs. What was not brought back until now has not taken place."""
    row = Drill.objects.select_for_update().get(pk=drill.pk)
    if row.result:
        raise Refused("This drill has ended already. Nothing was changed.")
    row.stopped_by = str(actor)[:254]
    row.save(update_fields=["stopped_by"])
    record(actor=actor, verb="backups.drill-stop", object=row)
    return row


def move_on() -> int:
    """Begin drills that are due, end those that are over; return how many. Reads the few that are open."""
    moved = 0
    for pk in Drill.objects.filter(result="", planned__lte=timezone.now()).values_list("pk", flat=True):
        with transaction.atomic():
            rows = Drill.objects.select_for_update(skip_locked=True, of=("self",)).select_related("region", "target")
            drill = rows.filter(pk=pk, result="").first()
            if drill is not None:
                moved += _move(drill)
    stopped = Drill.objects.filter(result="", begun__isnull=True, planned__gt=timezone.now()).exclude(stopped_by="")
    for drill in stopped:
        _end(drill, Result.MISSED, f"It was called off by {drill.stopped_by}.")
    return moved


def _move(drill: Drill) -> int:
    now = timezone.now()
    if drill.begun is None:
        if drill.stopped_by:
            _end(drill, Result.MISSED, f"It was called off by {drill.stopped_by}.")
        elif now - drill.planned > TOO_LATE:
            _end(drill, Result.MISSED, "Nothing began it within a day of its time: no worker was there.")
        else:
            _begin(drill)
        return 1
    late = now - drill.begun > LONGEST
    if drill.stopped_by or late:
        # An organisation's pages name nobody of those who run Hearth.
        _cut(drill, "The drill was broken off." if drill.stopped_by else "The drill took longer than two days.")
        why = f"It was broken off by {drill.stopped_by}." if drill.stopped_by else "It took longer than two days."
        _end(drill, Result.FAILED, why)
        return 1
    if not drill.proofs.filter(result="").exists():
        verdict, text = judged(drill)
        _end(drill, verdict, text)
        return 1
    return 0


def _begin(drill: Drill) -> None:
    """Take the region as lost: every server gets its turn."""
    now = timezone.now()
    drill.begun = now
    drill.save(update_fields=["begun"])
    if drill.repeat_days:
        _plan_next(drill)
    store = store_of(drill.region)
    servers = list(in_order(drill))
    for place, server in enumerate(servers):
        wanted = {"drill": drill, "place": place, "store": store, "region": drill.target}
        if schedule.make(server, Proof.Kind.RECOVERY, **wanted) is None:
            # Its own test is at it: a drill comes first, and that one's result would say nothing of the loss.
            _replace(server, wanted)
    record(actor=SYSTEM, verb="backups.drill-begin", object=drill, after={"servers": len(servers)})
    if not servers:
        _end(drill, Result.FAILED, "No server of the region has a restore point in that store: nothing comes back.")


def _replace(server: Server, wanted: dict[str, Any]) -> None:
    ends.give_way(server.pk, "a drill comes first")
    Proof.objects.filter(server=server, kind=Proof.Kind.RECOVERY, result="", drill=None).update(
        result=Proof.Result.MISSED, ended=timezone.now(), summary="It gave way to a drill.", fence=F("fence") + 1
    )
    if schedule.make(server, Proof.Kind.RECOVERY, **wanted) is None:
        log.warning("The server %s is in another drill already.", server.pk)


def _cut(drill: Drill, why: str) -> None:
    """End what has not ended. The sweep removes its instances."""
    for proof in drill.proofs.filter(result=""):
        ends.give_way(proof.server_id, why)
    now = timezone.now()
    drill.proofs.filter(result="").update(
        result=Proof.Result.MISSED, ended=now, summary=why, fence=F("fence") + 1, lease_until=None
    )


def _end(drill: Drill, result: str, text: str) -> None:
    drill.result, drill.summary, drill.ended = result, text, timezone.now()
    drill.save(update_fields=["result", "summary", "ended"])
    if drill.begun is None and drill.repeat_days and not drill.stopped_by:
        _plan_next(drill)
    record(actor=SYSTEM, verb="backups.drill-end", object=drill, after={"result": result, "summary": text})
    if result != Result.PASSED:
        transaction.on_commit(partial(_tell, drill), robust=True)


def _tell(drill: Drill) -> None:
    """Mail staff about a drill that did not pass: its page, its tile and its metric say so too."""
    page = public_url(reverse("admin:backups_drill_change", args=[drill.pk]))
    told = f"The drill “{drill}” of the region {drill.region} did not pass. {drill.summary}"
    text = f"Hello,\n\n{told}\n\nLook here: {page}\n\nHearth\n"
    try:
        mail_staff(f"Hearth: the drill “{drill}” did not pass"[:200], text)
    except SecurityError as error:
        # A mail is sealed too: with the root key's source away there are the page, the tile and the metric.
        log.error("Nobody could be mailed about the drill %s: %s", drill.pk, error)


def _plan_next(drill: Drill) -> None:
    """Plan the same again."""
    names = ("name", "region", "target", "repeat_days", "at_once", "rto_goal", "rpo_goal")
    when = max(drill.planned, timezone.now()) + timedelta(days=drill.repeat_days)
    following = Drill.objects.create(planned=when, **{name: getattr(drill, name) for name in names})
    following.servers.set(drill.servers.all())


def store_of(region: Region) -> Store:
    """Return the store that is left when the region is lost: the second one, where it has one."""
    stores = RegionStores.objects.select_related("first", "second").get(region=region)
    return stores.second or stores.first


def in_order(drill: Drill) -> QuerySet[Server]:
    """Return the servers of a drill: whoever pays more comes first, of one plan the smaller server."""
    rows = Server.objects.filter(region=drill.region.code, deleted__isnull=True)
    if drill.servers.exists():
        rows = rows.filter(pk__in=drill.servers.values("pk"))
    else:
        whole = RestorePoint.objects.filter(state=RestorePoint.State.WHOLE)
        rows = rows.filter(pk__in=whole.values("server"))
    price = F("organisation__subscription__plan__price_minor").desc(nulls_last=True)
    return rows.order_by(price, "backups__stored_bytes", "pk")


def judged(drill: Drill) -> tuple[str, str]:
    """Return how a drill went whose servers have all ended, and a sentence."""
    rows = list(drill.proofs.all())
    late = [row for row in rows if not meets(drill, row)]
    if not late:
        return Result.PASSED, f"All {len(rows)} servers came back within the goals."
    return Result.FAILED, f"Of {len(rows)} servers {len(late)} did not come back within the goals."


def meets(drill: Drill, proof: Proof) -> bool:
    """Tell whether a server came back, in time, with all that it may not lose."""
    return proof.result == Proof.Result.PASSED and meets_rto(drill, proof) and meets_rpo(drill, proof)


def meets_rto(drill: Drill, proof: Proof) -> bool:
    return proof.rto_seconds is not None and proof.rto_seconds <= drill.rto_goal


def meets_rpo(drill: Drill, proof: Proof) -> bool:
    return proof.rpo_seconds is not None and proof.rpo_seconds <= drill.rpo_goal
