"""What staff see of restores."""

from __future__ import annotations

from django.contrib import admin

from backups.models import Restore
from observability.console import ReadOnlyAdmin, column, megabytes, moment

STATE_TONES = {"queued": "busy", "running": "busy", "succeeded": "good", "failed": "bad", "cancelled": "idle"}


@admin.register(Restore)
class RestoreAdmin(ReadOnlyAdmin):
    """What was brought back, how it went, and what is kept of it."""

    list_display = ["when", "source", "mode", "goal", "how_it_went", "took", "read", "holds", "kept", "asked_by"]
    list_filter = ["mode", "holds"]
    list_select_related = ["source", "operation"]
    search_fields = ["source__server_name", "point"]
    ordering = ["-operation__created"]

    @column("asked for", order="operation__created")
    def when(self, row: Restore) -> str:
        return moment(row.operation.created)

    @column("moment", order="moment")
    def goal(self, row: Restore) -> str:
        return moment(row.moment)

    @column("result", order="operation__state", tones=STATE_TONES)
    def how_it_went(self, row: Restore) -> tuple[str, str]:
        return row.operation.state, row.operation.get_state_display()

    @column("seconds", order="seconds")
    def took(self, row: Restore) -> str:
        return "" if row.seconds is None else f"{row.seconds:.0f}"

    @column("read", order="total_bytes")
    def read(self, row: Restore) -> str:
        return megabytes(row.total_bytes)

    @column("kept until", order="keep_until")
    def kept(self, row: Restore) -> str:
        return moment(row.keep_until)
