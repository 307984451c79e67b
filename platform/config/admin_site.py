"""The staff console: unfold's pages behind allauth's sign-in, for staff whose session proved a second factor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from csp.constants import NONE, SELF, UNSAFE_EVAL, UNSAFE_INLINE
from csp.decorators import csp_replace
from django.contrib.auth import REDIRECT_FIELD_NAME, logout
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.templatetags.static import static
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.utils.http import url_has_allowed_host_and_scheme, urlencode
from django.views.decorators.cache import never_cache
from unfold.sites import UnfoldAdminSite

from accounts.factors import AFTER_FACTOR, challenge_url, has_factor
from config import console

# For /admin/ alone. Unfold's Alpine evaluates expressions in attributes (unsafe-eval) and its pages set their colours
# in a style element and in attributes (inline styles). Scripts still come from our own files only.
POLICY = {
    "script-src": [SELF, UNSAFE_EVAL],
    "style-src": [SELF, UNSAFE_INLINE],
    "form-action": [SELF],
    "frame-ancestors": [NONE],
}
View = Callable[..., Any]


class HearthAdminSite(UnfoldAdminSite):
    """Everything below /admin/. Whoever may not enter is led to the missing step, never to a form of its own."""

    index_title = "Staff console"
    index_template = "admin/console.html"

    def each_context(self, request: HttpRequest) -> dict[str, Any]:
        context: dict[str, Any] = super().each_context(request)
        return context | {"styles": [*context.get("styles", []), static("console.css")]}

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """What needs somebody first; then everything."""
        tiles = console.tiles()
        return cast("HttpResponse", super().index(request, {**(extra_context or {}), "tiles": tiles}))

    def has_permission(self, request: HttpRequest) -> bool:
        return bool(super().has_permission(request)) and cast("Any", request.user).is_verified()

    def admin_view(self, view: View, cacheable: bool = False) -> View:
        return csp_replace(POLICY)(super().admin_view(view, cacheable))

    @method_decorator(never_cache)
    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:  # noqa: ARG002
        """Lead to the missing step: signing in, adding a second factor, or proving it in this session."""
        target = self._target(request)
        if not request.user.is_authenticated:
            return redirect_to_login(target, reverse("account_login"))
        user = request.user
        if not user.is_staff:
            raise PermissionDenied("The staff console is for the people who run this Hearth.")
        if self.has_permission(request):
            return redirect(target)
        if has_factor(user):
            return redirect(f"{challenge_url(user)}?{urlencode({REDIRECT_FIELD_NAME: target})}")
        request.session[AFTER_FACTOR] = target
        return redirect("mfa_activate_totp")

    def logout(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:  # noqa: ARG002
        """Sign out by POST; a mere link asks first."""
        if request.method != "POST":
            return redirect("account_logout")
        logout(request)
        return redirect("account_login")

    def password_change(
        self,
        request: HttpRequest,  # noqa: ARG002 (Django's signature)
        extra_context: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> HttpResponse:
        """There is one place for passwords."""
        return redirect("account_change_password")

    def _target(self, request: HttpRequest) -> str:
        target = request.GET.get(REDIRECT_FIELD_NAME, "")
        inside = reverse("admin:index")
        safe = url_has_allowed_host_and_scheme(target, allowed_hosts=None) and target.startswith(inside)
        return target if safe and not target.startswith(reverse("admin:login")) else inside
