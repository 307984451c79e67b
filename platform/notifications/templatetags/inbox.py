"""Tells a page whether its mails can be read on this machine."""

from __future__ import annotations

from typing import Any

from django import template

from notifications.access import inbox_is_here

register = template.Library()


@register.inclusion_tag("notifications/_where.html", takes_context=True)
def where_mails_are(context: dict[str, Any]) -> dict[str, bool]:
    """Say where the mail is when no mail server is set and the reader sits at this machine."""
    request = context.get("request")
    return {"here": request is not None and inbox_is_here(request)}
