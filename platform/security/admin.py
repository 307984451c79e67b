"""The keyring in the staff console: to read. No page shows a key, not even a wrapped one."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from observability.console import ReadOnlyAdmin
from security.keyring import erasure, report
from security.models import Erasure, KeyEncryptionKey, Rewrap, RootKey


@admin.register(RootKey)
class RootKeyAdmin(ReadOnlyAdmin):
    list_display = ("id", "state", "created", "rotate_after", "in_time")
    ordering = ("-created",)

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        # The one table here whose key is text, and PostgreSQL knows no text with a NUL in it.
        return None if "\x00" in object_id else super().get_object(request, object_id, from_field)

    @admin.display(boolean=True)
    def in_time(self, row: RootKey) -> bool:
        return row.state != RootKey.State.ACTIVE or row.rotate_after >= timezone.now()


@admin.register(KeyEncryptionKey)
class KeyEncryptionKeyAdmin(ReadOnlyAdmin):
    """The policy report: every version, its age, its next rotation; what is overdue on top."""

    list_display = ("owner_name", "version", "state", "created", "rotate_after", "in_time", "root")
    list_filter = ("state",)
    search_fields = ("owner",)
    exclude = ("wrapped",)
    list_select_related = ("root",)
    ordering = ("state", "rotate_after")

    @admin.display(description="owner")
    def owner_name(self, row: KeyEncryptionKey) -> str:
        return report.name(row.owner)

    @admin.display(boolean=True)
    def in_time(self, row: KeyEncryptionKey) -> bool:
        return row.state != KeyEncryptionKey.State.ACTIVE or row.rotate_after >= timezone.now()

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        late = report.overdue_keks().count() + report.overdue_roots().count()
        title = f"Keys: {late} overdue" if late else "Keys: none is overdue"
        page: HttpResponse = super().changelist_view(request, {"title": title, **(extra_context or {})})
        return page


@admin.register(Rewrap)
class RewrapAdmin(ReadOnlyAdmin):
    list_display = ("owner", "done", "total", "started", "finished", "error")
    exclude = ("lease",)


@admin.register(Erasure)
class ErasureAdmin(ReadOnlyAdmin):
    list_display = ("owner", "requested", "destroy_after", "destroyed", "complete_on", "completed")

    @admin.display(description="complete on")
    def complete_on(self, row: Erasure) -> Any:
        return erasure.complete_on(row)
