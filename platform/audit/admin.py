"""The audit trail in the staff console: to read and to search."""

from __future__ import annotations

from django.contrib import admin

from audit.models import AuditEvent
from observability.console import ReadOnlyAdmin, column, moment


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    list_display = ("when", "verb", "object_type", "object_label", "actor_label", "address")
    list_filter = ("verb", "object_type")
    search_fields = ("object_id", "object_label", "actor_label", "request_id", "organisation_id")
    date_hierarchy = "at"
    ordering = ("-id",)

    @column("at", order="id")
    def when(self, event: AuditEvent) -> str:
        return moment(event.at)
