"""Reads for the page of exports. A fixed number of queries."""

from __future__ import annotations

import math
from dataclasses import dataclass

from django.conf import settings
from django.db.models import QuerySet

from backups.exporting import verbs
from backups.exporting.models import Export
from backups.restoring import choices
from backups.restoring.choices import Choice
from tenants.errors import Refused
from tenants.models import Server

SHOWN = 20


@dataclass(frozen=True)
class Page:
    """What the page shows."""

    exports: list[Export]
    unfit: str
    """Why nothing can be exported now; empty: it can."""
    choice: Choice | None
    """The latest that can be exported; None: another moment has to be chosen."""
    unsure: str
    """Why that is so."""
    keep_days: int

    @property
    def open(self) -> Export | None:
        """The one that is being made."""
        return next((each for each in self.exports if each.is_open), None)

    @property
    def bytes(self) -> int:
        """About how large an archive of everything is: the files, and the database as compressed as its backup."""
        return self.choice.bytes if self.choice else 0

    @property
    def duration(self) -> str:
        """About how long it takes, in words."""
        seconds = self.choice and choices.estimate(self.choice.server.region, self.bytes, exports=True)
        if not seconds:
            return (
                "How long it takes is not known yet: nothing was exported here before. While it goes on, that is told."
            )
        minutes = math.ceil(seconds / 60)
        return "It takes about a minute." if minutes <= 1 else f"It takes about {minutes} minutes."


def rows(server: Server) -> QuerySet[Export]:
    """Return a server's exports, the newest first."""
    found = Export.objects.filter(restore__source=server).order_by("-restore__operation__created")
    return found.select_related("restore__operation", "restore__source", "restore__store")


def page(server: Server) -> Page:
    """Read what there is to show."""
    exports = [each for each in rows(server)[:SHOWN] if each.removed is None or each.has_failed]
    keep_days = int(settings.HEARTH["HEARTH_EXPORT_KEEP_DAYS"])
    try:
        verbs.refuse_unfit(server)
    except Refused as refusal:
        return Page(exports, refusal.message, None, "", keep_days)
    try:
        return Page(exports, "", verbs.newest(server), "", keep_days)
    except Refused as refusal:
        # What is newest may be damaged: what is older can be taken along all the same.
        some = choices.points(server) or choices.moments(server)
        unfit, unsure = ("", refusal.message) if some else (refusal.message, "")
    return Page(exports, unfit, None, unsure, keep_days)
