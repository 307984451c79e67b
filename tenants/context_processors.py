"""What every page knows: the person's organisations."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject

from tenants.models import Organisation

# The header's list; the start page has all of them.
SHOWN = 12


def organisations(request: HttpRequest) -> dict[str, Any]:
    """Give the header its list. The query runs only where a template shows it."""
    user = getattr(request, "user", None)
    if user is None:
        return {}

    def load() -> list[Organisation]:
        if not user.is_authenticated:
            return []
        return list(Organisation.objects.filter(memberships__user_id=user.pk)[:SHOWN])

    return {"my_organisations": SimpleLazyObject(load)}
