"""What staff see of proofs, and where they plan drills and read what came of them. Registered by `backups.admin`."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import path, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin

from backups.proofs import drills, pages
from backups.proofs.models import Drill, Proof
from observability.console import ReadOnlyAdmin, column, moment
from tenants.errors import Refused

TONES = {"passed": "good", "failed": "bad", "missed": "bad", "": "busy"}
FACT = '<li style="margin-bottom: .5rem"><strong>{}</strong>: {}</li>'
CELL = "padding: .35rem .75rem .35rem 0; text-align: left; vertical-align: top"
HEAD = ("", "Server", "Plan", "Result", "Back after", "Goal", "Work lost", "Goal", "From", "What happened")
PLANNED = ("name", "region", "target", "servers", "planned", "repeat_days", "at_once", "rto_goal", "rpo_goal")


@admin.register(Proof)
class ProofAdmin(ReadOnlyAdmin):
    """What was tried, and what came of it."""

    list_display = ["when", "server", "kind", "how_it_went", "rto_seconds", "rpo_seconds", "summary"]
    list_filter = ["kind", "result"]
    list_select_related = ["server"]
    search_fields = ["server__server_name", "point"]
    ordering = ["-begun"]
    fields = ["server", "kind", "how_it_went", "begun", "ended", "summary", "drill", "facts", "evidence"]
    readonly_fields = ["how_it_went", "facts"]

    @column("began", order="begun")
    def when(self, row: Proof) -> str:
        return moment(row.begun)

    @column("result", order="result", tones=TONES)
    def how_it_went(self, row: Proof) -> tuple[str, str]:
        return row.result, row.get_result_display() if row.result else "In progress"

    @column("in words")
    def facts(self, row: Proof) -> SafeString:
        return format_html("<ul>{}</ul>", format_html_join("", FACT, pages.facts(row)))


class DrillForm(forms.ModelForm):  # type: ignore[type-arg]
    """What is taken as lost, and when."""

    class Meta:
        model = Drill
        fields = PLANNED
        labels = {"rto_goal": "RTO goal", "rpo_goal": "RPO goal", "repeat_days": "Again after days"}

    def clean(self) -> dict[str, Any]:
        found = dict(super().clean() or {})
        if not self.errors:
            servers = found.pop("servers")
            try:
                drills.refuse(Drill(**found), servers)
            except Refused as refusal:
                self.add_error(
                    refusal.field if refusal.field in self.fields else None, ValidationError(refusal.message)
                )
            found["servers"] = servers
        return found


@admin.register(Drill)
class DrillAdmin(ModelAdmin):
    """Drills: planned, running and ended. A drill is planned here, and never changed afterwards."""

    form = DrillForm
    list_display = ["name", "region", "target", "when", "how_it_went", "summary"]
    list_filter = ["result", "region"]
    list_select_related = ["region", "target"]
    autocomplete_fields = ["servers"]
    ordering = ["-planned"]
    actions = ["break_off"]
    list_fullwidth = True

    def has_delete_permission(self, *_: Any) -> bool:
        return False

    def has_act_permission(self, request: HttpRequest, *_: Any) -> bool:
        """Tell whether the person may break a drill off."""
        user: Any = request.user
        return bool(user.has_perm("backups.change_drill"))

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False if obj else bool(super().has_change_permission(request, obj))

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:  # noqa: ARG002 (Django's signature)
        return ["how_it_went", "report", "export", "begun", "ended", *PLANNED] if obj else PLANNED

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return [each for each in self.get_fields(request, obj) if obj] if obj else []

    def get_urls(self) -> Any:
        site = self.admin_site.admin_view
        names = "backups_drill_export"
        return [path("<uuid:pk>/report.<str:form>", site(self.exported), name=names), *super().get_urls()]

    def save_model(self, request: HttpRequest, obj: Drill, form: Any, change: bool) -> None:  # noqa: ARG002 (Django's)
        drills.plan(request.user, drill=obj, servers=form.cleaned_data["servers"])

    def save_related(self, *_: Any, **__: Any) -> None:
        """Done by the verb."""

    def log_addition(self, *_: Any) -> None:
        """Leave it to the audit trail."""

    def exported(self, request: HttpRequest, pk: Any, form: str) -> HttpResponse:
        """Give the report out as JSON or CSV."""
        drill = get_object_or_404(Drill.objects.select_related("region", "target"), pk=pk)
        if not self.has_view_permission(request, drill):
            return HttpResponse(status=403)
        made = pages.report(drill)
        kinds = {"json": ("application/json", made.json), "csv": ("text/csv; charset=utf-8", made.csv)}
        if form not in kinds:
            return HttpResponse(status=404)
        kind, write = kinds[form]
        headers = {"Content-Disposition": f'attachment; filename="drill-{drill.pk}.{form}"'}
        return HttpResponse(write(), content_type=kind, headers=headers)

    @admin.action(description="Break off", permissions=["act"])
    def break_off(self, request: HttpRequest, queryset: QuerySet[Drill]) -> None:
        for drill in queryset:
            try:
                drills.break_off(request.user, drill=drill)
            except Refused as refusal:
                self.message_user(request, f"{drill}: {refusal.message}", messages.ERROR)
            else:
                self.message_user(request, f"{drill} is being ended. What was not back yet counts as missed.")

    @column("planned", order="planned")
    def when(self, row: Drill) -> str:
        return moment(row.planned)

    @column("result", order="result", tones=TONES)
    def how_it_went(self, row: Drill) -> tuple[str, str]:
        open_ = "In progress" if row.begun else "Planned"
        return row.result, row.get_result_display() if row.result else open_

    @column("export")
    def export(self, row: Drill) -> SafeString:
        links = [(reverse("admin:backups_drill_export", args=[row.pk, form]), form.upper()) for form in ("json", "csv")]
        return format_html_join(" · ", '<a class="text-primary-600" href="{}">{}</a>', links)

    @column("report")
    def report(self, row: Drill) -> SafeString:
        """What met the goals and what did not, server by server, most important first."""
        made = pages.report(row)
        counts, worst = made.counts, made.worst
        told = (
            f"{counts['back']} of {counts['servers']} servers back; {counts['rto_met']} within {row.rto_goal:,} s, "
            f"{counts['rpo_met']} with at most {row.rpo_goal:,} s of work lost; {counts['missed']} did not take place. "
            f"Longest: {_seconds(worst['rto_seconds'])}; most work lost: {_seconds(worst['rpo_seconds'])}."
        )
        head = format_html_join("", '<th style="{}">{}</th>', [(CELL, name) for name in HEAD])
        body = format_html_join("", "<tr>{}</tr>", [(_cells(each),) for each in made.rows])
        table = format_html('<div style="overflow-x: auto"><table><tr>{}</tr>{}</table></div>', head, body)
        return format_html("<p>{}</p><p>{}</p>{}", row.summary, told, table)


def _cells(row: pages.Row) -> SafeString:
    result = dict(Proof.Result.choices).get(row.result, "In progress")
    some = (
        row.place,
        row.server,
        row.plan,
        result,
        _seconds(row.rto_seconds),
        _met(row.rto_met, row.result),
        _seconds(row.rpo_seconds),
        _met(row.rpo_met, row.result),
        row.store,
        row.summary,
    )
    return format_html_join("", '<td style="{}">{}</td>', [(CELL, each) for each in some])


def _seconds(value: float | None) -> str:
    return "not measured" if value is None else f"{value:,.0f}\u00a0s"


def _met(met: bool, result: str) -> str:
    return "" if not result else "met" if met else "missed"
