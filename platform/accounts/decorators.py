"""Who may see the members' pages: signed in, with a verified address, with a second factor."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec
from urllib.parse import urlencode

from allauth.account.models import EmailAddress
from django.conf import settings
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse

from accounts.factors import challenge_url, has_factor, session_is_verified

P = ParamSpec("P")
View = Callable[Concatenate[HttpRequest, P], HttpResponse]


def member_area(view: View[P]) -> View[P]:
    """Let a request through to `view` only when its person is fully signed in, else show them the step that is missing.

    The steps, in order: sign in, verify the e-mail address, and (with HEARTH_REQUIRE_MFA) set up a second factor. A
    session that is older than the person's second factor proves it once, so that one taken before is of no use after.
    """

    @wraps(view)
    def guarded(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
        missing = missing_step(request)
        return view(request, *args, **kwargs) if missing is None else missing

    return guarded


def missing_step(request: HttpRequest) -> HttpResponse | None:
    """Return the answer that leads to the next step of signing in, or None when nothing is missing."""
    if not request.user.is_authenticated:
        return redirect_to_login(request.get_full_path())
    user = request.user
    if not EmailAddress.objects.filter(user=user, verified=True).exists():
        return render(request, "account/verified_email_required.html", status=403)
    if not has_factor(user):
        return redirect("second_factor_start") if settings.HEARTH["HEARTH_REQUIRE_MFA"] else None
    if not session_is_verified(request, user):
        return redirect(with_next(challenge_url(user), request))
    return None


def with_next(url: str, request: HttpRequest) -> str:
    """Add the page to come back to. A form that was sent can't be repeated: its person comes back to the start page."""
    target = request.get_full_path() if request.method in {"GET", "HEAD"} else reverse("home")
    parameters: dict[str, Any] = {REDIRECT_FIELD_NAME: target}
    return f"{url}?{urlencode(parameters)}"
