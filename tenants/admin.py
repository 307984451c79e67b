"""Organisations, what they bought and what they want, in the staff console. To read: changes go through the verbs."""

from __future__ import annotations

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin import EmptyFieldListFilter
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.http import urlencode

from observability.console import ReadOnlyAdmin, ReadOnlyInline, moment
from security.keyring import erasure as keys
from security.models import Erasure
from tenants import encryption, services
from tenants.errors import Refused
from tenants.models import WITH_PLAN, Domain, Membership, Organisation, Plan, Server, Subscription


class MembershipInline(ReadOnlyInline):
    tab = True
    model = Membership
    fields = ("user", "role", "created")
    readonly_fields = fields


class ServerInline(ReadOnlyInline):
    tab = True
    model = Server
    fields = ("server_name", "region", "version", "desired", "created", "deleted")
    readonly_fields = fields
    show_change_link = True


@admin.register(Organisation)
class OrganisationAdmin(ReadOnlyAdmin):
    list_display = ("name", "slug", "plan", "member_count", "server_count", "created")
    list_filter = ("subscription__plan",)
    search_fields = ("name", "slug", "id", "memberships__user__email")
    readonly_fields = ("name", "slug", "id", "plan", "created", "key", "rotation", "data_keys", "erasure")
    fieldsets = (
        (None, {"fields": ("name", "slug", "id", "plan", "created")}),
        ("Encryption", {"fields": ("key", "rotation", "data_keys", "erasure")}),
    )
    list_select_related = ("subscription__plan",)
    inlines = (MembershipInline, ServerInline)
    actions = ("rotate_key", "request_erasure", "withdraw_erasure")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Organisation]:
        everybody: QuerySet[Organisation] = super().get_queryset(request)
        living = Q(servers__deleted__isnull=True)
        return everybody.annotate(
            members=Count("memberships", distinct=True), living=Count("servers", filter=living, distinct=True)
        )

    @admin.display(description="plan")
    def plan(self, organisation: Organisation) -> str:
        subscription = getattr(organisation, "subscription", None)
        return str(subscription.plan) if subscription else "none yet"

    @admin.display(description="members")
    def member_count(self, organisation: Organisation) -> int:
        return int(getattr(organisation, "members", 0))

    @admin.display(description="servers")
    def server_count(self, organisation: Organisation) -> int:
        return int(getattr(organisation, "living", 0))

    @admin.display(description="key")
    def key(self, organisation: Organisation) -> str:
        found = _of(organisation)
        if found.active is None:
            return "None"
        words = [f"version {found.active.version}, {found.age_days} days old, under root key {found.active.root_id}"]
        if found.moving:
            words.append(f"{found.moving.done} of {found.moving.total} data keys moved. {found.moving.error}".rstrip())
        query = urlencode({"q": str(organisation.pk)})
        url = f"{reverse('admin:security_keyencryptionkey_changelist')}?{query}"
        return format_html('{} (<a href="{}">all versions</a>)', "; ".join(words), url)

    @admin.display(description="next rotation")
    def rotation(self, organisation: Organisation) -> str:
        found = _of(organisation)
        if found.active is None:
            return ""
        return f"{moment(found.active.rotate_after)}{', OVERDUE' if found.overdue else ''}"

    @admin.display(description="data keys")
    def data_keys(self, organisation: Organisation) -> str:
        return "; ".join(f"{kind.keys:,}: {kind.what} ({kind.cipher})" for kind in _of(organisation).kinds)

    @admin.display(description="erasure")
    def erasure(self, organisation: Organisation) -> str:
        end = _of(organisation).ending
        if end is None:
            return "Not asked for"
        row = end.row
        destroyed = "keys destroyed" if row.destroyed else "keys to be destroyed"
        complete = "complete" if row.completed else "to be complete"
        return (
            f"Asked for {moment(row.requested)}; {destroyed} {moment(row.destroyed or row.destroy_after)}; "
            f"{complete} {moment(end.complete_on)}{_kept(end)}"
        )

    @admin.action(description="Rotate the keys", permissions=["act"])
    def rotate_key(self, request: HttpRequest, organisations: QuerySet[Organisation]) -> None:
        for organisation in organisations:
            try:
                made = services.rotate_keys(actor=request.user, organisation=organisation)
            except Refused as refusal:
                self.message_user(request, f"{organisation.name}: {refusal}", messages.ERROR)
            else:
                self.message_user(request, f"{organisation.name}: version {made.version} is active.")

    @admin.action(description="Have the keys erased", permissions=["act"])
    def request_erasure(self, request: HttpRequest, organisations: QuerySet[Organisation]) -> HttpResponse | None:
        """Ask with the dates first. One at a time: nobody types ten addresses with care."""
        chosen = list(organisations[:2])
        if len(chosen) != 1:
            self.message_user(request, "Choose one organisation. Nothing was changed.", messages.ERROR)
            return None
        return _erase(self, request, chosen[0])

    @admin.action(description="Take an erasure of the keys back", permissions=["act"])
    def withdraw_erasure(self, request: HttpRequest, organisations: QuerySet[Organisation]) -> None:
        for organisation in organisations:
            try:
                services.withdraw_erasure(actor=request.user, organisation=organisation)
            except Refused as refusal:
                self.message_user(request, str(refusal), messages.ERROR)
            else:
                self.message_user(request, f"{organisation.name} keeps its keys.")


def _kept(end: encryption.Ending) -> str:
    """Say what the date counts on."""
    if end.row.completed:
        return ""
    days = f"{end.copies_days} day{'' if end.copies_days == 1 else 's'}" if end.copies_days else "not at all"
    return f" (copies of the database are kept {days}: HEARTH_DATABASE_COPIES_DAYS)"


def _of(organisation: Organisation) -> encryption.Encryption:
    """Read it once for a page."""
    held = organisation.__dict__
    if "encryption" not in held:
        held["encryption"] = encryption.of(organisation)
    found: encryption.Encryption = held["encryption"]
    return found


def _erase(page: OrganisationAdmin, request: HttpRequest, organisation: Organisation) -> HttpResponse | None:
    """Show the question, or carry out its answer and go back to the list."""
    refusal = ""
    if "confirm" in request.POST:
        try:
            row = services.request_erasure(
                actor=request.user, organisation=organisation, confirm=request.POST["confirm"]
            )
        except Refused as refused:
            refusal = str(refused)
        else:
            dates = f"destroyed {moment(row.destroy_after)}, complete {moment(keys.complete_on(row))}"
            page.message_user(request, f"{organisation.name}: the keys are going to be erased ({dates}).")
            return None
    row = Erasure.objects.filter(owner=organisation.pk).first() or keys.planned(organisation.pk)
    context = {
        **page.admin_site.each_context(request),
        "title": f"Erase the keys of {organisation.name}",
        "opts": page.opts,
        "organisation": organisation,
        "destroy_after": row.destroy_after,
        "complete_on": keys.complete_on(row),
        "copies_days": settings.HEARTH["HEARTH_DATABASE_COPIES_DAYS"],
        "refusal": refusal,
        "back": reverse("admin:tenants_organisation_changelist"),
    }
    return TemplateResponse(request, "admin/erase_keys.html", context)


@admin.register(Membership)
class MembershipAdmin(ReadOnlyAdmin):
    list_display = ("user", "organisation", "role", "created")
    list_filter = ("role",)
    list_select_related = ("user", "organisation")
    search_fields = ("user__email", "organisation__name", "organisation__slug")


class PlanForm(forms.ModelForm):  # type: ignore[type-arg]
    """How servers of a plan are kept."""

    class Meta:
        model = Plan
        fields = WITH_PLAN
        labels = {
            "database_instances": "Copies of the database",
            "database_synchronous": "Two copies confirm",
            "database_replicas": "Read from the others",
            "workers": "Workers at most",
        }

    def clean(self) -> dict[str, Any]:
        found = dict(super().clean() or {})
        if not self.errors:
            for key in ("database_synchronous", "database_replicas"):
                if found[key] and found["database_instances"] < 2:
                    self.add_error(key, "This needs at least 2 instances.")
        return found


@admin.register(Plan)
class PlanAdmin(ReadOnlyAdmin):
    """Plans. How large they are is read only; how their servers are kept can be changed."""

    form = PlanForm
    list_display = (
        "name", "code", "offered", "servers", "users", "vcpu", "memory_mb", "disk_gb", "object_gb", "database_instances"
    )  # fmt: skip
    readonly_fields = (
        "name", "code", "summary", "offered", "servers", "users", "vcpu", "memory_mb", "disk_gb", "object_gb"
    )  # fmt: skip
    fieldsets = (
        (None, {"fields": readonly_fields}),
        (
            "How servers are kept in regions that are clusters",
            {
                "fields": WITH_PLAN,
                "description": "All servers of organisations on this plan take a change over, one after the other.",
            },
        ),
    )

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002 (Django's)
        return self.has_act_permission(request)

    def save_model(self, request: HttpRequest, obj: Plan, form: Any, change: bool) -> None:  # noqa: ARG002 (Django's)
        services.change_plan(actor=request.user, plan=obj, **{key: form.cleaned_data[key] for key in WITH_PLAN})

    def log_change(self, *_: Any) -> None:
        """Leave it to the audit trail, which the verb writes."""


@admin.register(Subscription)
class SubscriptionAdmin(ReadOnlyAdmin):
    list_display = ("organisation", "plan", "since")
    list_filter = ("plan",)
    list_select_related = ("organisation", "plan")
    search_fields = ("organisation__name", "organisation__slug")


@admin.register(Domain)
class DomainAdmin(ReadOnlyAdmin):
    list_display = ("name", "organisation", "proved", "last_checked", "last_error")
    list_filter = (("proved", EmptyFieldListFilter),)
    list_select_related = ("organisation",)
    search_fields = ("name", "organisation__name", "organisation__slug")
    # Without the token, which is the organisation's to show.
    fields = ("id", "name", "organisation", "created", "proved", "last_checked", "last_error")
    readonly_fields = fields
    actions = ("revoke",)

    @admin.action(description="Take the proof back: the domain has changed hands", permissions=["act"])
    def revoke(self, request: HttpRequest, domains: QuerySet[Domain]) -> None:
        count = sum(services.revoke_domain(actor=request.user, domain=domain) for domain in domains)
        self.message_user(request, f"{count} proofs taken back. Servers on these domains federate no more.")
