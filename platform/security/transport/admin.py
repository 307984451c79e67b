"""The internal authority in the staff console: to read. No page shows its key."""

from __future__ import annotations

from django.contrib import admin
from django.utils import timezone

from observability.console import ReadOnlyAdmin
from security.transport.models import Authority


@admin.register(Authority)
class AuthorityAdmin(ReadOnlyAdmin):
    list_display = ("id", "created", "signs_from", "not_after", "in_time")
    exclude = ("key",)
    ordering = ("-signs_from",)

    @admin.display(boolean=True, description="valid")
    def in_time(self, row: Authority) -> bool:
        return row.not_before <= timezone.now() < row.not_after
