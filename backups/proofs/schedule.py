"""When proofs are due: recovery tests by each server's policy, a full read once a week, both spread by server id.

Level-triggered: `ServerBackups.next_proof` and `next_reading` say what is due. A recovery test is begun only where its
region has room, so what can't be carried out stays due, gets late, and is told (`backups.alerts`).
"""

from __future__ import annotations

import hashlib
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from audit.services import record
from backups.models import Policy, RegionStores, RestorePoint, ServerBackups
from backups.policies import policy_of
from backups.proofs import leases
from backups.proofs.models import UNDER_WAY, Drill, Proof
from provisioning.fleet import tests_recovery
from provisioning.models import Region
from tenants.errors import Refused
from tenants.models import Server

READING_DAYS = 7
AT_ONCE = 200
AGAIN = timedelta(hours=1)
"""People may ask for a test of a server once an hour: it is a whole restore."""
EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
Kind = Proof.Kind


def next_of(kind: str, policy: Policy, server: uuid.UUID, after: datetime) -> datetime:
    """Return the first moment later than `after` of the server's own schedule: every few days, at its own second."""
    every = timedelta(days=policy.prove_days if kind == Kind.RECOVERY else READING_DAYS)
    share = int.from_bytes(hashlib.sha256(kind.encode() + server.bytes).digest()[:4], "big") / 2**32
    start = EPOCH + every * share
    return start + every * ((after - start) // every + 1)


def plan_missing() -> int:
    """Give servers that have a restore point their first dates; return how many."""
    now, made = timezone.now(), 0
    for kind, column in ((Kind.RECOVERY, "next_proof"), (Kind.READING, "next_reading")):
        rows = ServerBackups.objects.filter(**{f"{column}__isnull": True}, reported__isnull=False)
        for row in rows.filter(server__deleted__isnull=True).select_related("server")[:AT_ONCE]:
            when = next_of(kind, policy_of(row.server), row.pk, now)
            made += ServerBackups.objects.filter(pk=row.pk, **{f"{column}__isnull": True}).update(**{column: when})
    return made


def place_due() -> int:
    """Make the proofs that are due, as far as there is room; return how many. Reads small indexes."""
    found = 0
    regions = {each.region.code: each.region for each in RegionStores.objects.select_related("region")}
    for region in regions.values():
        busy = Proof.objects.filter(kind=Kind.RECOVERY, drill=None, region=region, result="").count()
        found += _place(Kind.RECOVERY, "next_proof", [region], int(settings.HEARTH["HEARTH_RECOVERY_TESTS"]) - busy)
    reading = Proof.objects.filter(kind=Kind.READING, result="").count()
    free = int(settings.HEARTH["HEARTH_FULL_READS"]) - reading
    # Workers read for all regions: of all of them whoever has waited longest.
    return found + _place(Kind.READING, "next_reading", list(regions.values()), free)


def due_now() -> list[uuid.UUID]:
    """Return the proofs that a worker may take a turn of, the longest waiting first.

    Of a drill's servers that wait only as many as there are places for, in their order: a drill may have thousands.
    """
    due = Proof.objects.filter(leases.due())
    rows = due.exclude(drill__isnull=False, step="begin").order_by("run_after")
    found = list(rows.values_list("pk", flat=True)[:AT_ONCE])
    for drill in Drill.objects.filter(result="", begun__isnull=False):
        waiting = due.filter(drill=drill, step="begin").order_by("place").values_list("pk", flat=True)
        found += waiting[: max(drill.at_once - drill.proofs.filter(UNDER_WAY).count(), 0)]
    return found


@transaction.atomic
def prove_now(actor: Any, *, server: Server) -> Proof:
    """Have a recovery test take place as soon as there is room. Refused where there is nothing, or one just was."""
    points = RestorePoint.objects.filter(server=server, state=RestorePoint.State.WHOLE)
    if server.deleted or server.desired == Server.Desired.DELETED or not points.exists():
        raise Refused("There is no whole restore point yet that could be tried out. Nothing was begun.")
    region = Region.objects.filter(code=server.region).first()
    if region is not None and not tests_recovery(region):
        raise Refused("There are no recovery tests of servers in this region yet. Nothing was begun.")
    rows = Proof.objects.filter(server=server, kind=Kind.RECOVERY)
    if rows.filter(result="").exists():
        raise Refused("A recovery test of this server is in progress already.")
    if rows.filter(begun__gt=timezone.now() - AGAIN).exists():
        raise Refused("A recovery test took place within the last hour. Ask again later; nothing was begun.")
    proof = make(server, Kind.RECOVERY)
    if proof is None:
        raise Refused("A recovery test of this server is in progress already.")
    record(actor=actor, verb="backups.prove", object=proof, organisation_id=server.organisation_id)
    return proof


def make(server: Server, kind: str, **columns: Any) -> Proof | None:
    """Make a proof that waits for a worker; None where one of its kind is open for this server."""
    now = timezone.now()
    try:
        with transaction.atomic():
            return Proof.objects.create(server=server, kind=kind, step="begin", begun=now, run_after=now, **columns)
    except IntegrityError:
        return None


def _place(kind: str, column: str, regions: list[Region], free: int) -> int:
    if free <= 0:
        return 0
    now, by_code = timezone.now(), {each.code: each for each in regions}
    rows = ServerBackups.objects.filter(**{f"{column}__lte": now}, server__region__in=by_code)
    found = rows.filter(server__deleted__isnull=True).order_by(column).values_list("pk", flat=True)
    made = 0
    for pk in found[:AT_ONCE].iterator():
        made += _place_one(pk, kind, column, by_code)
        if made >= free:
            break
    return made


@transaction.atomic
def _place_one(pk: uuid.UUID, kind: str, column: str, regions: dict[str, Region]) -> int:
    now = timezone.now()
    rows = ServerBackups.objects.select_for_update(skip_locked=True, of=("self",)).select_related("server")
    row = rows.filter(pk=pk, **{f"{column}__lte": now}).first()
    if row is None:
        return 0  # another worker is at it
    when = next_of(kind, policy_of(row.server), row.pk, now)
    ServerBackups.objects.filter(pk=pk).update(**{column: when})
    if row.server.desired != Server.Desired.RUNNING:
        return 0  # it rests, and nobody waits for proof of it
    region = regions[row.server.region]
    if kind == Kind.RECOVERY and not tests_recovery(region):
        return 0  # it would fail each time, for a reason that everybody knows: docs/limits.md
    return 1 if make(row.server, kind, region=region) else 0
