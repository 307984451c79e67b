"""Mails in the staff console: what left, what waits, what was given up. Never their text."""

from __future__ import annotations

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from unfold.decorators import action

from notifications import services
from notifications.models import Mail
from observability.console import ReadOnlyAdmin, column


@admin.register(Mail)
class MailAdmin(ReadOnlyAdmin):
    list_display = ("created", "recipient", "subject", "how_it_is", "attempts", "sent", "error")
    list_filter = ("state",)
    search_fields = ("recipient", "subject")
    fields = ("id", "created", "recipient", "subject", "state", "attempts", "next_attempt", "sent", "error")
    readonly_fields = fields
    actions = ("retry",)
    actions_list = ("send_test_mail",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Mail]:
        mails: QuerySet[Mail] = super().get_queryset(request)
        return mails.defer("text")

    @column("state", order="state", tones={"queued": "busy", "sent": "good", "inbox": "idle", "failed": "bad"})
    def how_it_is(self, mail: Mail) -> tuple[str, str]:
        return mail.state, mail.get_state_display()

    @admin.action(description="Try given-up mails again", permissions=["act"])
    def retry(self, request: HttpRequest, mails: QuerySet[Mail]) -> None:
        count = services.retry(request.user, mails)
        self.message_user(request, f"{count} mails wait for their next try.")

    @action(  # type: ignore[untyped-decorator]  # unfold has no types
        description="Send a test mail to me", url_path="send-test-mail", permissions=["act"]
    )
    def send_test_mail(self, request: HttpRequest) -> HttpResponse:
        left, what_happened = services.send_test(request.user, str(getattr(request.user, "email", "")))
        self.message_user(request, what_happened, messages.SUCCESS if left else messages.WARNING)
        return redirect("admin:notifications_mail_changelist")
