"""What the apps' staff pages share: tables to read, whose only changes are verbs offered as actions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from django.http import HttpRequest
from django.utils import timezone
from unfold.admin import ModelAdmin, TabularInline

F = TypeVar("F", bound=Callable[..., Any])
TONES = {"good": "success", "warn": "warning", "bad": "danger", "busy": "info"}
"""Hearth's tones by unfold's names for its labels; any other tone is grey."""


def column(description: str, *, order: str = "", tones: Mapping[str, str] | None = None) -> Callable[[F], F]:
    """Make a method a list column. With `tones` it returns (value, words), shown as a label in the value's tone."""

    def mark(method: F) -> F:
        found: Any = method
        found.short_description = description
        if order:
            found.admin_order_field = order
        if tones is not None:
            found.label = {value: TONES.get(tone, "") for value, tone in tones.items()}
        return method

    return mark


def moment(at: datetime | None) -> str:
    """Write a time to the second, in UTC and on one line: staff compare it with logs."""
    return at.astimezone(timezone.get_default_timezone()).strftime("%Y-%m-%d\u00a0%H:%M:%S") if at else ""


def megabytes(count: int) -> str:
    """Write bytes as MB, the unit that servers are compared in."""
    return f"{count / 1_000_000:,.1f}\u00a0MB"


class ReadOnlyAdmin(ModelAdmin):
    """No form writes rows here: `services` are the only writers, and an action calls one of their verbs.

    Actions have `permissions=["act"]`: to look (`view`) is one thing, to act (Django's `change`) another.
    """

    list_per_page = 50
    show_full_result_count = False
    list_fullwidth = True

    def has_add_permission(self, request: HttpRequest, *_: Any) -> bool:  # noqa: ARG002 (Django's signature)
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002 (Django's signature)
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002 (Django's signature)
        return False

    def has_act_permission(self, request: HttpRequest, *_: Any) -> bool:
        """Tell whether the person may use the verbs that are offered here."""
        user: Any = request.user
        return bool(user.has_perm(f"{self.opts.app_label}.change_{self.opts.model_name}"))


class ReadOnlyInline(TabularInline):
    """Rows to read on the page of what they belong to."""

    extra = 0
    can_delete = False
    hide_title = True

    def has_add_permission(self, *_: Any) -> bool:
        return False

    def has_change_permission(self, *_: Any) -> bool:
        return False
