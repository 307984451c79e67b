"""What a look through a store says about restore points: damaged ones are named, and every look is evidence."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Q

from backups.engine import verify
from backups.engine.catalogue import Catalogue
from backups.models import Drill, Proof, RestorePoint, Shelf, Store
from backups.policies import policy_of
from backups.regions import is_first, whole_in
from tenants.models import Server

SHOWN = 20
State = RestorePoint.State
KEPT = timedelta(days=396)
"""Evidence is kept for 13 months."""
DAMAGED_POINTS = "damaged_restore_points"
"""Where a proof's evidence names all restore points that it found damaged."""


def known_points(server: Server, store: Store) -> frozenset[str]:
    """Return which restore points must lie there; asked before the store is listed."""
    return frozenset(whole_in(server, store).values_list("identity", flat=True))


def look(shelf: Shelf, catalogue: Catalogue, expected: frozenset[str], begun: datetime, ended: datetime) -> set[str]:
    """Compare a listing with the manifests and with what Hearth knows; return the points that are gone from it."""
    first = is_first(shelf.server, shelf.store)
    window = begun - timedelta(days=policy_of(shelf.server).window_days)
    known = verify.Expected(points=expected)
    report = verify.look(catalogue, marks=first, since=window, expected=known)
    with transaction.atomic():
        _write(shelf, report, begun, ended)
        if first:
            _mark(shelf, report, ended)
    return set(expected - catalogue.points.keys())


def _write(shelf: Shelf, report: verify.Report, begun: datetime, ended: datetime) -> None:
    count, damage = len(report.damage), report.damage[:SHOWN]
    lost = f"{count} are missing or changed. Restore points that this concerns: {len(report.hit)}."
    Proof.objects.create(
        server=shelf.server,
        kind=Proof.Kind.LISTING,
        begun=begun,
        ended=ended,
        result=Proof.Result.FAILED if count else Proof.Result.PASSED,
        summary=f"{report.objects:,} objects in {shelf.store}: {lost if count else 'all are there.'}",
        evidence={
            "store": shelf.store.code,
            "objects": report.objects,
            "bytes": report.bytes,
            "restore_points": len(report.sound) + len(report.hit),
            DAMAGED_POINTS: list(report.hit[:SHOWN]),
            "damaged_objects": count,
            "damage": [{"name": each.name, "kind": each.kind, "text": each.text} for each in damage],
        },
    )


def _mark(shelf: Shelf, report: verify.Report, at: datetime) -> None:
    rows = RestorePoint.objects.filter(server=shelf.server).exclude(state=State.GONE)
    texts: dict[str, str] = {}
    for each in report.damage:
        for identity in each.points:
            texts.setdefault(identity, each.text)
    for identity, text in texts.items():
        rows.filter(identity=identity).update(state=State.DAMAGED, damage=text, listed=at)
    sound = rows.filter(identity__in=report.sound)
    sound.update(listed=at)
    # What came back (a disk that is mounted again) is whole again, unless somebody read it and found it damaged.
    failed = Proof.objects.filter(server=shelf.server, result=Proof.Result.FAILED).exclude(kind=Proof.Kind.LISTING)
    read = {each for told in failed.values_list("evidence", flat=True) for each in told.get(DAMAGED_POINTS, ())}
    sound.filter(state=State.DAMAGED).exclude(identity__in=read).update(state=State.WHOLE, damage="")


def forget_old(at: datetime, *, at_once: int = 10_000) -> int:
    """Remove evidence older than 13 months; return how much."""
    gone = Q(instance__isnull=True) | Q(removed__isnull=False)
    old = Proof.objects.filter(gone, begun__lt=at - KEPT, drill=None).exclude(result="").order_by("begun")
    count = Proof.objects.filter(pk__in=list(old.values_list("pk", flat=True)[:at_once])).delete()[0]
    for drill in Drill.objects.filter(ended__lt=at - KEPT):
        if not drill.proofs.filter(instance__isnull=False, removed__isnull=True).exists():
            count += drill.delete()[0]  # with its proofs
    return count
