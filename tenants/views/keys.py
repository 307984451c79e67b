"""The page on which an organisation sees how its data is encrypted, and rotates its key."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST, require_safe

from accounts.decorators import member_area
from tenants import encryption, services
from tenants.access import get_organisation
from tenants.errors import Refused


@require_safe
@member_area
def organisation_keys(request: HttpRequest, slug: str) -> HttpResponse:
    """Key version, age, next rotation, what is encrypted by what, and the dates of an erasure."""
    access = get_organisation(request.user, slug)
    context = {
        "access": access,
        "organisation": access.organisation,
        "encryption": encryption.of(access.organisation),
    }
    return render(request, "tenants/keys.html", context)


@require_POST
@member_area
def keys_rotate(request: HttpRequest, slug: str) -> HttpResponse:
    """An owner makes the next version of the key."""
    access = get_organisation(request.user, slug, owner=True)
    try:
        made = services.rotate_keys(actor=request.user, organisation=access.organisation)
    except Refused as refusal:
        messages.error(request, refusal.message)
    else:
        messages.success(
            request,
            f"Version {made.version} is your key now. Everything stays readable while Hearth moves your data keys to "
            "it; no data is read for that.",
        )
    return redirect("organisation_keys", slug)
