"""The pages around signing in that allauth does not have."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET

from accounts.factors import has_factor


@require_GET
@login_required
def second_factor_start(request: HttpRequest) -> HttpResponse:
    """The step after verification: choose an authenticator app or a passkey."""
    if has_factor(request.user):
        return redirect("home")
    return render(request, "accounts/second_factor_start.html")
