"""What staff see of the fleet. Nothing is edited by hand: operations are retried and cancelled by their verbs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.admin import ModelAdmin, TabularInline

from observability.console import ReadOnlyAdmin
from provisioning import services
from provisioning.models import Operation, OperationEvent, OperationStep, Region, Sample, ServerStatus
from tenants.errors import Refused


@admin.register(Region)
class RegionAdmin(ModelAdmin):
    """Regions: staff may rename one and close it to new servers."""

    list_display = ["name", "code", "provider", "base_domain", "open"]
    readonly_fields = ["code", "provider", "base_domain"]

    def has_add_permission(self, *_: Any) -> bool:
        return False

    def has_delete_permission(self, *_: Any) -> bool:
        return False


class LinesInline(TabularInline):
    """Lines to read under their operation."""

    extra = 0
    can_delete = False

    def has_add_permission(self, *_: Any) -> bool:
        return False

    def has_change_permission(self, *_: Any) -> bool:
        return False


class StepInline(LinesInline):
    """The steps of an operation."""

    model = OperationStep
    fields = ["position", "title", "state", "attempts", "started", "finished"]


class EventInline(LinesInline):
    """The log of an operation."""

    model = OperationEvent
    fields = ["at", "step", "level", "message"]
    readonly_fields = fields


@admin.register(Operation)
class OperationAdmin(ReadOnlyAdmin):
    """Operations, with the same retry and cancel that owners have."""

    list_display = ["kind", "server", "state", "error_code", "attempts", "created", "finished"]
    list_filter = ["state", "kind", "error_code"]
    search_fields = ["server__server_name", "id"]
    list_select_related = ["server"]
    date_hierarchy = "created"
    inlines = [StepInline, EventInline]
    actions = ["retry", "cancel"]

    @admin.action(description="Try again", permissions=["view"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Operation]) -> None:
        """Try the chosen operations again, each by itself."""
        self._each(request, queryset, services.retry_operation)

    @admin.action(description="Cancel", permissions=["view"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[Operation]) -> None:
        """Cancel the chosen operations where that is still safe."""
        self._each(request, queryset, services.cancel_operation)

    def _each(self, request: HttpRequest, chosen: QuerySet[Operation], verb: Callable[..., Operation]) -> None:
        for operation in chosen:
            try:
                verb(request.user, operation=operation)
            except Refused as refusal:
                messages.error(request, f"{operation}: {refusal.message}")
            else:
                messages.success(request, f"{operation}: done.")


@admin.register(ServerStatus)
class ServerStatusAdmin(ReadOnlyAdmin):
    """How each server was last seen."""

    list_display = ["server", "phase", "reason", "version", "crashes", "last_seen"]
    list_filter = ["phase", "reason", "version"]
    search_fields = ["server__server_name"]
    list_select_related = ["server"]


@admin.register(Sample)
class SampleAdmin(ReadOnlyAdmin):
    """What servers used."""

    list_display = ["server", "at", "memory_bytes", "disk_bytes", "media_bytes", "users"]
    search_fields = ["server__server_name"]
    list_select_related = ["server"]
