"""People in the staff console. Second factors and links are nobody's to read, so allauth's own pages are taken out."""

from __future__ import annotations

from typing import cast

from allauth.account.models import EmailAddress, EmailConfirmation
from allauth.mfa.models import Authenticator
from django.contrib import admin, messages
from django.contrib.auth.models import Group
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest

from accounts import services
from accounts.factors import FACTORS
from accounts.models import User
from observability.console import ReadOnlyAdmin, column

for hidden in (EmailAddress, EmailConfirmation, Authenticator, Group):
    if admin.site.is_registered(hidden):
        admin.site.unregister(hidden)


@admin.register(User)
class UserAdmin(ReadOnlyAdmin):
    list_display = ("email", "name", "verified", "second_factor", "staff", "is_active", "date_joined", "last_login")
    list_filter = ("is_active", "is_staff")
    search_fields = ("email", "name", "id")
    ordering = ("-date_joined",)
    fields = ("id", "email", "name", "verified", "second_factor", "is_active", "is_staff", "date_joined", "last_login")
    readonly_fields = fields
    actions = ("close", "reopen")

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        addresses = EmailAddress.objects.filter(user=OuterRef("pk"), verified=True)
        factors = Authenticator.objects.filter(user=OuterRef("pk"), type__in=FACTORS)
        people: QuerySet[User] = super().get_queryset(request)
        return people.annotate(has_address=Exists(addresses), has_factor=Exists(factors))

    @admin.display(boolean=True, description="verified")
    def verified(self, user: User) -> bool:
        return bool(getattr(user, "has_address", False))

    @admin.display(boolean=True, description="second factor")
    def second_factor(self, user: User) -> bool:
        return bool(getattr(user, "has_factor", False))

    @column("staff", order="is_staff", tones={"staff": "busy", "no": "idle"})
    def staff(self, user: User) -> tuple[str, str]:
        return ("staff", "Staff") if user.is_staff else ("no", "No")

    @admin.action(description="Close the accounts", permissions=["act"])
    def close(self, request: HttpRequest, people: QuerySet[User]) -> None:
        self._set_active(request, people, active=False)

    @admin.action(description="Open the accounts again", permissions=["act"])
    def reopen(self, request: HttpRequest, people: QuerySet[User]) -> None:
        self._set_active(request, people, active=True)

    def _set_active(self, request: HttpRequest, people: QuerySet[User], *, active: bool) -> None:
        changed = 0
        for user in people:
            try:
                changed += services.set_active(cast("User", request.user), user, active)
            except services.Refused as refusal:
                self.message_user(request, refusal.message, messages.ERROR)
        self.message_user(request, f"{changed} of the chosen accounts {'opened' if active else 'closed'}.")
