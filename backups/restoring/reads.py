"""Reads for the pages of restores. Each is a fixed number of queries."""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import Exists, OuterRef

from backups.models import Restore
from provisioning.models import Operation
from provisioning.spec import ABOUT_BACKUPS, BROUGHT_BACK
from tenants.models import Server

Holds = Restore.Holds


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


def _busy(server: Server) -> set[str]:
    rows = Operation.objects.filter(server=server, state__in=Operation.OPEN, kind__in=ABOUT_BACKUPS)
    return {str(wanted.get("restore", "")) for wanted in rows.values_list("wanted", flat=True)}


def ended_by_restore() -> Exists:
    """Match lines of a server's history that ended because it was given other data: that is no gap."""
    changes = Operation.objects.filter(
        server=OuterRef("server"),
        kind__in=BROUGHT_BACK,
        state=Operation.State.SUCCEEDED,
        created__lte=OuterRef("until"),
        finished__gte=OuterRef("until"),
    )
    return Exists(changes)
