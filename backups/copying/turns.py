"""One turn of one server's copy: compare two stores, copy what lacks within bounds, and say honestly how far it is.

`reached` is a promise: a restore from the target alone brings back any commit up to there. It is moved on only when the
target has all that the source showed, and the source showed all that Hearth knows to be in it; else no further than
the newest moment that the target shows. It goes back when the target lost something.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models.functions import Now
from django.utils import timezone

from audit.services import SYSTEM, record
from backups import expiring, places
from backups.copying import leases
from backups.copying.leases import Lease, LeaseLostError
from backups.copying.models import Copy
from backups.engine import names
from backups.engine.lacking import Report
from backups.engine.replicate import Replication
from backups.engine.stores.base import StoreError
from backups.models import RestorePoint, ServerBackups
from backups.regions import stores_of
from security.errors import SecurityError
from security.keyring.publish import database_time

SECONDS, MOST_BYTES = 30.0, 512 * 2**20
"""What a turn begins at most. What is left comes at its next one, after every other server that waits."""
AGAIN, LATER = timedelta(minutes=1), timedelta(minutes=10)
"""When a turn is tried again after a fault that can pass by itself, and after one that somebody must mend."""
MEGABYTE = 10**6
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Told:
    """What Hearth knew before it looked."""

    until: datetime | None
    """All up to here lies in the first store, as the engine says."""
    stored_bytes: int
    line: str
    whole: frozenset[str]
    """Restore points that must be in the source."""
    copied: frozenset[str]
    """Those that must be in the target."""


@dataclass(frozen=True)
class _Wrong:
    code: str = ""
    text: str = ""
    retry: bool = True


def run(lease: Lease) -> None:
    """Take the turn and write down how it went; the lease is given back. Raises nothing that a store may cause."""
    copy = lease.copy
    if expiring.is_over(copy.server, database_time()):
        _write(lease, next_turn=None, lag_objects=0, lag_bytes=0, fault_code="", fault="", fault_since=None)
        return
    told = _known(copy)
    try:
        report = _turn(lease)
    except (StoreError, SecurityError) as error:
        report = Report(stopped=error if isinstance(error, StoreError) else StoreError(str(error), code="KeysAway"))
    try:
        _end(lease, told, report)
    except LeaseLostError:
        log.info("Another worker goes on with the copy %s.", copy.pk)


def _turn(lease: Lease) -> Report:
    copy = lease.copy
    # A target that was written to before must be there: an empty folder is a disk that is not mounted.
    new = copy.turned is None
    with (
        places.opened(copy.source, copy.server_id) as source,
        places.opened(copy.target, copy.server_id, make=new) as target,
    ):
        replication = Replication(source, target, rate=share(copy), seconds=SECONDS, most=MOST_BYTES)
        with lease.kept(replication.stop, lambda: replication.pace(share(copy))):
            return replication.turn()


def share(copy: Copy) -> float | None:
    """Return the bytes a second that this copy may take of what its region has for all of them; None: no bound."""
    stores = stores_of(copy.server)
    if stores is None or not stores.copy_megabytes:
        return None
    others = leases.running().filter(source=copy.source_id, target=copy.target_id).count()
    return stores.copy_megabytes * MEGABYTE / max(others, 1)


def _known(copy: Copy) -> _Told:
    row = ServerBackups.objects.filter(server=copy.server_id).first()
    points = RestorePoint.objects.filter(server=copy.server_id).exclude(state=RestorePoint.State.GONE)
    whole = points.filter(state=RestorePoint.State.WHOLE).values_list("identity", flat=True)
    copied = points.filter(copied__isnull=False).values_list("identity", flat=True)
    until = row.until if row else None
    if until is not None and row is not None and row.media_until is not None:
        until = min(until, row.media_until)
    return _Told(
        until=until,
        stored_bytes=row.stored_bytes if row else 0,
        line=row.line if row else "",
        whole=frozenset() if copy.repair else frozenset(whole),
        copied=frozenset() if copy.repair else frozenset(copied),
    )


def _end(lease: Lease, told: _Told, report: Report) -> None:
    copy, wrong = lease.copy, _wrong(lease.copy, told, report)
    complete = report.is_complete and not wrong.code
    reached = _reached(copy, told, report, complete=complete)
    columns: dict[str, Any] = {
        "fault_code": wrong.code,
        "fault": wrong.text,
        "fault_since": (copy.fault_since or timezone.now()) if wrong.code else None,
        "copied_objects": copy.copied_objects + report.copied,
        "copied_bytes": copy.copied_bytes + report.bytes,
        "complete": complete,
        "reached": reached,
        "next_turn": _next(copy, report, wrong, complete=complete),
    }
    if report.listed:
        lag = {"lag_objects": report.after.objects, "lag_bytes": report.after.bytes}
        columns |= {"turned": timezone.now(), "seen_bytes": told.stored_bytes, **lag}
    with lease.write(**columns):
        if copy.repair:
            _repaired(copy, complete=complete)
        else:
            _show(copy, told, report, reached)


def _next(copy: Copy, report: Report, wrong: _Wrong, *, complete: bool) -> datetime | None:
    now = timezone.now()
    if wrong.code:
        return now + (AGAIN if wrong.retry else LATER)
    if report.more:
        return now
    over = copy.repair or copy.server.deleted is not None
    return None if complete and over else now + timedelta(seconds=int(settings.HEARTH["HEARTH_COPY_SECONDS"]))


def _reached(copy: Copy, told: _Told, report: Report, *, complete: bool) -> datetime | None:
    """Return up to when the target has everything."""
    if not report.listed:
        return copy.reached
    before = None if told.copied - report.target_before.points else copy.reached
    shown = [names.time_of(each) for each in report.target.moments.values()]
    known = [before, max(shown, default=None), told.until if complete else None]
    return max((each for each in known if each is not None), default=None)


def _wrong(copy: Copy, told: _Told, report: Report) -> _Wrong:
    if report.stopped is not None:
        error = report.stopped
        return _Wrong(error.code, f"{error} What was copied before is safe.", error.retry)
    if gone := told.whole - report.source.points:
        text = (
            f"{copy.source} lacks restore points that were there, {min(gone)} among them. What {copy.target} has of "
            "them stays. Look whether the right disk or bucket is there; if it was lost, have it repaired."
        )
        return _Wrong("SourceLost", text, retry=False)
    there, here = report.target_before.moments.get(told.line, ""), report.source.moments.get(told.line, "")
    if there > here and not copy.repair:
        after = f" after {names.time_of(here):%Y-%m-%d %H:%M} UTC" if here else ""
        text = (
            f"{copy.source} shows an older state than {copy.target} has: it gives old data, or lost what was written"
            f"{after}. What {copy.target} has stays. Look whether the right disk or bucket is there."
        )
        return _Wrong("SourceOld", text, retry=False)
    if report.faults:
        first, count = report.faults[0], len(report.faults)
        return _Wrong(first.code, f"Objects that can't be copied: {count}. {first.text}", retry=False)
    return _Wrong()


def _show(copy: Copy, told: _Told, report: Report, reached: datetime | None) -> None:
    """Tell pages and observers what the second store has."""
    ServerBackups.objects.filter(server=copy.server_id).update(copied_until=reached)
    if not report.listed:
        return
    ServerBackups.objects.filter(server=copy.server_id).update(copy_lag_bytes=report.after.bytes)
    rows = RestorePoint.objects.filter(server=copy.server_id)
    rows.filter(identity__in=report.target.points, copied__isnull=True).update(copied=Now())
    rows.filter(copied__isnull=False).exclude(identity__in=report.target.points).update(copied=None)
    if lost := told.copied - report.target_before.points:
        after = {"store": copy.target.code, "restore_points": len(lost), "back": len(lost & report.target.points)}
        log.warning("%s lost %d restore points of the server %s.", copy.target.code, len(lost), copy.server_id)
        owner = copy.server.organisation_id
        record(actor=SYSTEM, verb="backups.copy-lost", object=copy.server, organisation_id=owner, after=after)


def _repaired(copy: Copy, *, complete: bool) -> None:
    if complete:
        after = {"store": copy.target.code, "from": copy.source.code, "objects": copy.copied_objects}
        owner = copy.server.organisation_id
        record(actor=SYSTEM, verb="backups.repaired", object=copy.server, organisation_id=owner, after=after)


def _write(lease: Lease, **columns: Any) -> None:
    try:
        with lease.write(**columns):
            pass
    except LeaseLostError:
        log.info("Another worker goes on with the copy %s.", lease.copy.pk)
