"""Reads for the pages of restores. Each is a fixed number of queries."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone

from backups.models import Restore
from provisioning.models import Operation, OperationStep
from provisioning.spec import ABOUT_BACKUPS, BROUGHT_BACK
from tenants.models import Server

Holds = Restore.Holds
SPARE = timedelta(hours=1)
"""For the numbers that each settling adds beside: some dozens of times."""


@dataclass(frozen=True)
class Kept:
    """An instance that is kept beside a server."""

    row: Restore
    can_go_back: bool
    busy: bool
    """Something is being done with it."""

    @property
    def is_copy(self) -> bool:
        """Whether it holds what was brought back."""
        return self.row.holds == Holds.COPY

    @property
    def is_before(self) -> bool:
        """Whether it holds what the server had before it was restored."""
        return self.row.holds == Holds.BEFORE

    @property
    def loopback(self) -> bool:
        """Whether its address is one of this machine alone."""
        return "://127.0.0.1" in self.row.address or "://localhost" in self.row.address


def kept(server: Server) -> list[Kept]:
    """Return what is kept beside a server, the newest first. Not what exports use: nobody can look into that."""
    rows = Restore.objects.filter(source=server).exclude(holds=Holds.GONE).exclude(mode=Restore.Mode.EXPORT)
    rows = rows.select_related("operation", "store")
    found = sorted(rows, key=lambda row: row.operation.created, reverse=True)
    newest = max((row.switched for row in found if row.holds == Holds.BEFORE and row.switched), default=None)
    busy = _busy(server)
    return [Kept(row, row.holds == Holds.BEFORE and row.switched == newest, str(row.pk) in busy) for row in found]


def exchanged(**steps: Any) -> QuerySet[Operation]:
    """Return the operations that gave a server other data, also those that failed after that: it has them.

    `steps` says more of their step `exchange`, such as `finished__gt`.
    """
    wanted = {f"steps__{name}": value for name, value in steps.items()}
    done = OperationStep.State.DONE
    return Operation.objects.filter(kind__in=BROUGHT_BACK, steps__name="exchange", steps__state=done, **wanted)


def knows_less(server: Server, moment: datetime) -> bool:
    """Return whether the server may lack accounts that its backup of `moment` has: its history is another since then.

    It was restored to a moment before that one, or went back to what it had before a restore. What it says of who is
    locked, and who administers it, is no word then on those whom it never knew.
    """
    changes = list(exchanged(finished__gt=moment).filter(server=server).values_list("kind", "wanted"))
    if any(kind == Operation.Kind.GO_BACK for kind, _ in changes):
        return True
    restores = Restore.objects.filter(pk__in=[wanted["restore"] for _, wanted in changes])
    return any(to is None or to < moment for to in restores.values_list("moment", flat=True))


def counted_from(row: Restore, *, back: bool) -> datetime | None:
    """Return since when numbers count that others may have seen, should the living server not be able to tell.

    `back`: what the server had before gets its place back. What was restored went ahead for all the time since its
    moment, as often as it was settled: when it was brought back, and when the server got it. So as much counts twice.
    """
    if row.moment is None or not back:
        return row.moment
    return row.moment - ((row.switched or timezone.now()) - row.moment) - SPARE


def _busy(server: Server) -> set[str]:
    rows = Operation.objects.filter(server=server, state__in=Operation.OPEN, kind__in=ABOUT_BACKUPS)
    return {str(wanted.get("restore", "")) for wanted in rows.values_list("wanted", flat=True)}


def ended_by_restore() -> Exists:
    """Match lines of a server's history that ended because it was given other data: that is no gap."""
    during = {"created__lte": OuterRef("until"), "finished__gte": OuterRef("until")}
    return Exists(exchanged().filter(server=OuterRef("server"), **during))
