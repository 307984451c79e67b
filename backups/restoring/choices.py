"""What can be brought back of a server, which version runs on it, and why something can't be chosen. Reads only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.db.models import Q
from django.utils import timezone

from backups import selectors
from backups.models import Line, Restore, RestorePoint, ServerBackups, Store
from backups.policies import policy_of
from backups.regions import is_first, stores_of
from backups.selectors import Window
from provisioning.fleet import brings_back
from provisioning.models import Operation, Region, ServerStatus
from tenants import releases
from tenants.errors import Refused
from tenants.models import Server

SECOND = timedelta(seconds=1)
NEAR, MOST_POINTS = 3, 200
MEASURED = 20
State = RestorePoint.State


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One state of one server that can be brought back, as far as Hearth's own rows tell."""

    server: Server
    store: Store
    point: str
    """The restore point that was chosen; empty for a moment."""
    moment: datetime
    base: RestorePoint
    """What is read first: the point itself, or the newest one before the moment."""
    version: str

    @property
    def bytes(self) -> int:
        """About what is to be read, without the log of changes behind the base."""
        return self.base.stored_bytes + self.base.media_bytes

    @property
    def seconds(self) -> float | None:
        """About how long that takes, as earlier restores in its region tell; None where there was none."""
        return estimate(self.server.region, self.bytes)

    @property
    def duration(self) -> str:
        """That in words, for the page."""
        seconds = self.seconds
        if seconds is None:
            return "How long is not known: nothing was restored here before. While it goes on, that is told."
        minutes = math.ceil(seconds / 60)
        return "About a minute." if minutes <= 1 else f"About {minutes} minutes."


def choose(server: Server, *, point: str = "", moment: datetime | None = None, store: Store | None = None) -> Choice:
    """Return what was chosen, or raise `Refused` with a sentence that says what can be chosen instead.

    `point` is a restore point's name, else `moment` counts. `store`: another than the first, such as when that is lost.
    """
    refuse_unfit(server)
    first = store_of(server, store)
    if point:
        base = _point(server, point, first)
        return _choice(server, first, base, base.at, point=point)
    if moment is None:
        raise Refused("Choose a restore point or a time. Nothing was changed.", field="moment")
    return _choice(server, first, _base_of(server, moment, first), moment, point="")


def refuse_unfit(server: Server) -> None:
    """Raise `Refused` for a server into which nothing can be restored now."""
    if server.desired == Server.Desired.DELETED or server.deleted:
        raise Refused(
            "This server is being deleted, so nothing is restored into it. Bring it back first, as long as it can be."
        )
    status = ServerStatus.objects.filter(server=server).first()
    if status is None or not status.applied:
        raise Refused("This server was never finished, so nothing can be restored into it. Finish it first.")
    region = Region.objects.filter(code=server.region).first()
    if region is not None and not brings_back(region):
        raise Refused(
            f"Servers in the region {region} can't be brought back from their backups yet. Nothing was changed, and "
            "the backups are safe. Support can restore them elsewhere."
        )


def store_of(server: Server, wanted: Store | None = None) -> Store:
    """Return the store to read: the wanted one, or the region's first."""
    stores = stores_of(server)
    if stores is None:
        raise Refused("Where this server runs there is no store for backups, so nothing can be restored.")
    if wanted is not None and wanted.pk not in (stores.first_id, stores.second_id):
        raise Refused("That store has no backups of this server. Nothing was changed.", field="store")
    return wanted or stores.first


def moments(server: Server) -> list[Window]:
    """Return the stretches in which any whole second can be chosen, newest first."""
    found = []
    for window in selectors.windows(server, policy_of(server), timezone.now()):
        begun, until = _up(window.begun), window.until.replace(microsecond=0)
        if begun <= until:
            found.append(Window(begun, until))
    return found


def points(server: Server) -> list[RestorePoint]:
    """Return the restore points that can be chosen from one store or the other, newest first."""
    rows = selectors.whole(server).filter(Q(state=State.WHOLE) | Q(copied__isnull=False))
    return list(rows[:MOST_POINTS])


def stores(server: Server) -> list[Store]:
    """Return the stores that can be read: the region's first, and the second where anything is."""
    found = stores_of(server)
    if found is None:
        return []
    copied = found.second is not None and selectors.whole(server).filter(copied__isnull=False).exists()
    return [found.first, *([found.second] if copied and found.second else [])]


def estimate(region: str, size: int, *, exports: bool = False) -> float | None:
    """Return about how many seconds `size` bytes take, at the speed of the region's latest restores, or exports.

    Of exports only those of everything tell: of others the archive is small, and most of the time passes before it.
    """
    done = Restore.objects.filter(source__region=region, seconds__gt=0, total_bytes__gt=0).order_by("-begun")
    of_all = Q(mode=Restore.Mode.EXPORT, export__what="everything")
    done = done.filter(of_all if exports else ~Q(mode=Restore.Mode.EXPORT))
    rows = done.values_list("total_bytes", "seconds")[:MEASURED]
    read, took = sum(row[0] for row in rows), sum(float(row[1] or 0) for row in rows)
    return size * took / read if read else None


def told(windows: Sequence[Window]) -> str:
    """Say in a sentence what can be chosen."""
    if not windows:
        return "No second can be chosen yet: that begins with the first restore point."
    some = "; ".join(f"{_moment(each.begun)} to {_moment(each.until)}" for each in windows[:NEAR])
    return f"Any second can be chosen from {some} (UTC)."


def _choice(server: Server, store: Store, base: RestorePoint, at: datetime, *, point: str) -> Choice:
    try:
        version = releases.for_database(_versions(server, base, at)).version
    except releases.ReleaseRefused as refusal:
        raise Refused(f"{refusal} Nothing was changed.") from None
    return Choice(server=server, store=store, point=point, moment=at, base=base, version=version)


def _point(server: Server, identity: str, store: Store) -> RestorePoint:
    rows = selectors.whole(server)
    found = rows.filter(identity=identity).first()
    if found is None:
        raise Refused("There is no such restore point any more. Nothing was changed. Choose another.", field="point")
    if is_first(server, store):
        _refuse_damaged(server, found)
    elif found.copied is None:
        raise Refused("That store does not have this restore point yet. Nothing was changed.", field="store")
    return found


def _base_of(server: Server, moment: datetime, store: Store) -> RestorePoint:
    """Return the restore point that a restore to `moment` begins with."""
    windows, first = moments(server), is_first(server, store)
    if not any(each.begun <= moment <= each.until for each in windows):
        raise Refused(f"{_moment(moment)} can't be restored. Nothing was changed. {told(windows)}", field="moment")
    lines = Line.objects.filter(server=server, begun__lte=moment, until__gte=moment).values_list("identity", flat=True)
    rows = selectors.whole(server).filter(line__in=list(lines), at__lte=moment)
    copied = None if first else ServerBackups.objects.values_list("copied_until", flat=True).get(server=server)
    if not first and (copied is None or copied < moment):
        until = f"everything up to {_moment(copied)} UTC" if copied else "nothing of this server yet"
        raise Refused(f"That store has {until}. Nothing was changed. Choose a time before.", field="moment")
    base = rows.filter(Q() if first else Q(copied__isnull=False)).first()
    if base is None:
        raise Refused(
            f"The restore point that a restore to {_moment(moment)} begins with is not there. Nothing was changed. "
            f"{told(windows)}",
            field="moment",
        )
    if first:
        _refuse_damaged(server, base)
    return base


def _refuse_damaged(server: Server, found: RestorePoint) -> None:
    if found.state != State.DAMAGED:
        return
    rows = selectors.whole(server).filter(state=State.WHOLE)
    before = [each.at for each in rows.filter(at__lt=found.at)[:1]]
    after = [each.at for each in rows.filter(at__gt=found.at).order_by("at")[:1]]
    near = " and ".join(f"{_moment(each)} UTC" for each in before + after)
    others = f"Whole, and nearest to it, is what was kept at {near}." if near else "There is no whole one: ask support."
    if found.copied and len(stores(server)) > 1:
        others = f"The second store has a copy of it: read from that. {others}"
    raise Refused(
        f"The restore point of {_moment(found.at)} UTC is damaged: {found.damage.rstrip('.')}. Nothing was changed. "
        f"{others}",
        field="point",
    )


def _versions(server: Server, base: RestorePoint, at: datetime) -> list[str]:
    """Return the versions that may have written last to the database as it was at that moment.

    Between the restore point and the moment the server may have been upgraded; in the middle of that both wrote.
    """
    found = [base.synapse_version or server.version]
    changes = Operation.objects.filter(server=server, kind=Operation.Kind.UPGRADE, started__lte=at)
    for change in changes.exclude(finished__lt=base.at).order_by("started"):
        went_well = change.state == Operation.State.SUCCEEDED and change.finished is not None
        if went_well and change.finished is not None and change.finished <= at:
            found = [change.wanted["version"]]
        else:
            found.append(change.wanted["version"])
    return found


def _up(at: datetime) -> datetime:
    return at if at.microsecond == 0 else at.replace(microsecond=0) + SECOND


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
