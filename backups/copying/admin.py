"""What staff see of copies to second stores. Registered by `backups.admin`."""

from __future__ import annotations

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from backups.copying import verbs
from backups.copying.models import Copy
from observability.console import ReadOnlyAdmin, column, megabytes, moment

TONES = {"fault": "bad", "behind": "warn", "complete": "good", "new": "busy"}


@admin.register(Copy)
class CopyAdmin(ReadOnlyAdmin):
    """How far each server's copy is."""

    list_display = ["server", "way", "how_it_is", "until", "lacks", "last_turn", "fault_code", "fault"]
    list_filter = ["repair", "fault_code", "target"]
    list_select_related = ["server", "source", "target"]
    search_fields = ["server__server_name"]
    ordering = ["reached"]
    actions = ["turn_now"]

    @column("from, to")
    def way(self, row: Copy) -> str:
        repair = " (repair)" if row.repair else ""
        return f"{row.source} → {row.target}{repair}"

    @column("state", tones=TONES)
    def how_it_is(self, row: Copy) -> tuple[str, str]:
        if row.fault_code:
            return "fault", "Failing"
        if row.turned is None:
            return "new", "Begins"
        if row.complete:
            return "complete", "Complete" if row.next_turn else "Complete, ended"
        return "behind", "Copying"

    @column("has everything up to", order="reached")
    def until(self, row: Copy) -> str:
        return moment(row.reached)

    @column("lacks", order="lag_bytes")
    def lacks(self, row: Copy) -> str:
        return megabytes(row.lag_bytes) if row.lag_objects else ""

    @column("last compared", order="turned")
    def last_turn(self, row: Copy) -> str:
        return moment(row.turned)

    @admin.action(description="Copy now", permissions=["act"])
    def turn_now(self, request: HttpRequest, queryset: QuerySet[Copy]) -> None:
        """Let the chosen servers' turns come now, whatever the clock says."""
        count = verbs.turn_now(request.user, copies=queryset)
        messages.success(request, f"Next to be copied: {count}.")
