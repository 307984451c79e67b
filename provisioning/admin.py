"""What staff see of the fleet. Nothing is edited by hand: operations are retried and cancelled by their verbs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin import EmptyFieldListFilter
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.admin import ModelAdmin

from observability.console import ReadOnlyAdmin, ReadOnlyInline, column, megabytes, moment
from provisioning import clusters_admin, services  # noqa: F401 (registers its pages)
from provisioning.models import Operation, OperationEvent, OperationStep, Region, Sample, ServerStatus
from provisioning.selectors import OPERATION_TONES, TONES, badge, status_of
from tenants.errors import Refused
from tenants.models import Server


@admin.register(Region)
class RegionAdmin(ModelAdmin):
    """Regions: staff may rename one and close it to new servers."""

    list_display = ["name", "code", "provider", "base_domain", "open"]
    readonly_fields = ["code", "provider", "base_domain"]

    def has_add_permission(self, *_: Any) -> bool:
        return False

    def has_delete_permission(self, *_: Any) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Region, form: Any, change: bool) -> None:  # noqa: ARG002 (Django's)
        services.change_region(request.user, region=obj, name=obj.name, is_open=obj.open)


class StepInline(ReadOnlyInline):
    """The steps of an operation."""

    model = OperationStep
    fields = ["title", "state", "attempts", "began", "took"]
    readonly_fields = fields

    @column("started")
    def began(self, step: OperationStep) -> str:
        return moment(step.started)

    @column("took")
    def took(self, step: OperationStep) -> str:
        return "" if step.seconds is None else f"{step.seconds:.1f} s"


class EventInline(ReadOnlyInline):
    """The log of an operation."""

    model = OperationEvent
    fields = ["when", "step", "level", "message"]
    readonly_fields = fields

    @column("at")
    def when(self, event: OperationEvent) -> str:
        return moment(event.at)


@admin.register(Operation)
class OperationAdmin(ReadOnlyAdmin):
    """Operations, with the same retry and cancel that owners have."""

    list_display = ["kind", "server", "how_it_is", "error_code", "attempts", "created", "finished"]
    list_filter = ["state", "kind", "error_code"]
    search_fields = ["server__server_name", "id"]
    list_select_related = ["server"]
    date_hierarchy = "created"
    inlines = [StepInline, EventInline]
    actions = ["retry", "cancel"]

    @column("state", order="state", tones=OPERATION_TONES)
    def how_it_is(self, operation: Operation) -> tuple[str, str]:
        return operation.state, operation.get_state_display()

    @admin.action(description="Try again", permissions=["act"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Operation]) -> None:
        """Try the chosen operations again, each by itself."""
        self._each(request, queryset, services.retry_operation)

    @admin.action(description="Cancel", permissions=["act"])
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

    list_display = ["server", "how_it_is", "reason", "version", "crashes", "last_seen"]
    list_filter = ["phase", "reason", "version"]
    search_fields = ["server__server_name"]
    list_select_related = ["server"]

    @column("status", order="phase", tones=TONES)
    def how_it_is(self, status: ServerStatus) -> tuple[str, str]:
        return status.phase, badge(status).label


def _known(count: int | None) -> str:
    return "not measured" if count is None else megabytes(count)


@admin.register(Sample)
class SampleAdmin(ReadOnlyAdmin):
    """What servers used."""

    list_display = ["server", "at", "memory", "disk", "files", "users"]
    search_fields = ["server__server_name"]
    list_select_related = ["server"]
    date_hierarchy = "at"

    @column("memory", order="memory_bytes")
    def memory(self, sample: Sample) -> str:
        return _known(sample.memory_bytes)

    @column("disk", order="disk_bytes")
    def disk(self, sample: Sample) -> str:
        return _known(sample.disk_bytes)

    @column("media", order="media_bytes")
    def files(self, sample: Sample) -> str:
        return _known(sample.media_bytes)


class OperationInline(ReadOnlyInline):
    """What was done with a server."""

    tab = True
    model = Operation
    fields = ["kind", "state", "error_code", "created", "finished"]
    readonly_fields = fields
    show_change_link = True


@admin.register(Server)
class ServerAdmin(ReadOnlyAdmin):
    """Servers as they are wanted, with their status: only this layer knows both."""

    list_display = ("server_name", "organisation", "how_it_is", "region", "version", "desired", "created")
    list_filter = ("status__phase", "desired", "region", "version", ("deleted", EmptyFieldListFilter))
    list_select_related = ("organisation", "status")
    search_fields = ("server_name", "name", "id", "organisation__name", "organisation__slug")
    inlines = (OperationInline,)

    @column("status", order="status__phase", tones=TONES)
    def how_it_is(self, server: Server) -> tuple[str, str]:
        status = status_of(server)
        return status.phase, badge(status).label
