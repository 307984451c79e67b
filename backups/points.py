"""Restore points that an operation waits for: before a server is removed, and before it is upgraded.

Each call looks once and raises `NotYet` as long as the engine is at it: nobody's worker is held by a large database. It
has an end in any case. A removal goes on without a final backup only where none can be had any more; what was stored
before is then kept as long as the final backup would have been. All else stops it, since nothing was removed yet.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db import transaction
from django.utils import timezone

from audit.services import SYSTEM, record
from backups import policies
from backups.models import Order, RestorePoint, ServerBackups
from backups.orders import BACKUP, FINAL, OPEN, place
from backups.regions import stores_of
from provisioning.models import OperationStep
from provisioning.providers.base import ProviderError
from provisioning.steps import Context, NotYet

BEFORE_UPGRADE = "before-upgrade"
HEARD = timedelta(minutes=3)
"""An engine that has not spoken for so long does not run."""
TROUBLE = timedelta(minutes=10)
"""What is wrong for so long does not pass by itself."""
LONGEST = timedelta(hours=12)
MOST_BYTES_APART = 64 * 2**20
"""How far the copy goes from one line of the log to the next."""
BROKEN = ("DatabaseDown",)
"""Faults of the server itself: nothing can be read from it."""


class Unable(Exception):
    """The engine can't take the restore point. `broken`: because there is no server any more that it could copy."""

    def __init__(self, text: str, *, broken: bool) -> None:
        super().__init__(text)
        self.broken = broken


def final(context: Context) -> None:
    """Take the final backup of a server that is to be removed."""
    if not _backed_up(context):
        return
    try:
        order = _look(context, FINAL, FINAL)
    except Unable as error:
        if not error.broken:
            raise ProviderError(
                f"The final backup could not be taken: {error} Nothing was removed. Try again when that is solved.",
                code="NoFinalBackup",
                retry=False,
            ) from None
        _go_without(context, str(error))
        return
    context.log(f"The final backup is whole: {order.point}.")


def before_upgrade(context: Context) -> None:
    """Take a restore point to which the server can be brought back when the new version is no good."""
    if not _backed_up(context):
        return
    try:
        order = _look(context, BACKUP, BEFORE_UPGRADE)
    except Unable as error:
        raise ProviderError(
            f"No restore point could be taken, so the upgrade was not begun: {error} Your server runs on with the "
            "version it had. Try again when that is solved.",
            code="NoRestorePoint",
            retry=False,
        ) from None
    context.log(f"The restore point is whole: {order.point}.")


def _backed_up(context: Context) -> bool:
    """Tell whether there is something that could be backed up, and somewhere to; if not, say why."""
    server = context.server
    if stores_of(server) is None:
        context.log("No restore point is taken: this region has no store for backups.")
    elif not ServerBackups.objects.filter(server=server).exists():
        context.log("No restore point is taken: nothing has backed this server up yet.")
    elif not server.status.applied:
        context.log("No restore point is taken: the server was never finished.")
    else:
        return True
    return False


def _look(context: Context, kind: str, reason: str) -> Order:
    """Return the order of this operation when it is done. Raises `NotYet`, and `Unable`."""
    # From the operation's beginning on: tried again, it must not take an older order for its own.
    own = Order.objects.filter(server=context.server, kind=kind, reason=reason, made__gte=context.operation.created)
    order = own.first()
    if order is not None and order.state == Order.State.DONE:
        return order
    begun = OperationStep.objects.values_list("started", flat=True).get(operation=context.operation, name=context.step)
    if order is None or (order.state == Order.State.FAILED and order.made < (begun or order.made)):
        order = _place(context, kind, reason)
    elif order.state == Order.State.FAILED:
        raise Unable(order.error, broken=False)
    _refuse_endless(context, begun or timezone.now())
    _tell(context, order)
    raise NotYet


def _place(context: Context, kind: str, reason: str) -> Order:
    """Ask the engine; after another order of that kind, which is open."""
    with context.transaction():
        order = place(context.server, kind, reason)
    if order.reason == reason:
        context.log("The engine is asked for a restore point. It hears of it within a minute.")
    return order


def _refuse_endless(context: Context, begun: datetime) -> None:
    """Raise `Unable` when waiting longer has no sense."""
    now, row = timezone.now(), ServerBackups.objects.get(server=context.server)
    if now - begun > HEARD and row.reported is None:
        raise Unable("Nothing has ever backed this server up.", broken=True)
    if now - begun > HEARD and row.reported is not None and now - row.reported > HEARD:
        # Of a server that runs the data is there, and worth waiting until its engine can be reached again.
        seen = context.provider.observe().get(str(context.server.pk))
        raise Unable("The engine that backs it up does not answer.", broken=seen is None or not seen.running)
    if row.fault_code and row.fault_since and now - max(begun, row.fault_since) > TROUBLE:
        raise Unable(row.fault, broken=row.fault_code in BROKEN)
    if now - begun > LONGEST:
        raise Unable(f"It took longer than {LONGEST.total_seconds() / 3600:.0f} hours.", broken=False)


def _tell(context: Context, order: Order) -> None:
    """Put the copy's progress into the log, now and then."""
    if order.state != Order.State.TAKEN:
        return
    told = f"{order.done_bytes // MOST_BYTES_APART * MOST_BYTES_APART / 2**20:.0f} MB"
    line = f"More than {told} are copied." if order.done_bytes >= MOST_BYTES_APART else "The engine copies the server."
    if not context.operation.events.filter(step=context.step, message=line).exists():
        context.log(line)


def _go_without(context: Context, why: str) -> None:
    """Keep what is there as long as the final backup would have been, and let the removal go on."""
    server = context.server
    until = timezone.now() + timedelta(days=policies.policy_of(server).final_days)
    with context.transaction(), transaction.atomic():
        points = RestorePoint.objects.filter(server=server, state=RestorePoint.State.WHOLE)
        newest = points.first()
        if newest is not None:
            points.filter(pk=newest.pk, keep_until__lt=until).update(keep_until=until)
        Order.objects.filter(server=server, kind=FINAL, state__in=OPEN).update(
            state=Order.State.FAILED, error=why, ended=timezone.now()
        )
        after = {"why": why, "newest": newest.identity if newest else ""}
        record(
            actor=SYSTEM,
            verb="backups.without_final",
            object=server,
            organisation_id=server.organisation_id,
            after=after,
        )
    kept = f"The newest restore point, of {newest.at:%Y-%m-%d %H:%M} UTC, is kept." if newest else "There is none."
    context.log(f"No final backup can be taken: {why} {kept}")
