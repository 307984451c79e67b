"""Organisations, what they bought and what they want, in the staff console. To read: changes go through the verbs."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.admin import EmptyFieldListFilter
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest

from observability.console import ReadOnlyAdmin, ReadOnlyInline
from tenants import services
from tenants.models import Domain, Membership, Organisation, Plan, Server, Subscription


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
    fields = ("name", "slug", "id", "plan", "created")
    readonly_fields = fields
    list_select_related = ("subscription__plan",)
    inlines = (MembershipInline, ServerInline)

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


@admin.register(Membership)
class MembershipAdmin(ReadOnlyAdmin):
    list_display = ("user", "organisation", "role", "created")
    list_filter = ("role",)
    list_select_related = ("user", "organisation")
    search_fields = ("user__email", "organisation__name", "organisation__slug")


@admin.register(Plan)
class PlanAdmin(ReadOnlyAdmin):
    list_display = ("name", "code", "offered", "servers", "users", "vcpu", "memory_mb", "disk_gb", "object_gb")


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
