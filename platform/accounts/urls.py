"""Routes of sign-up, sign-in and the person's own settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from allauth.account import views as account
from allauth.mfa.recovery_codes import views as codes
from allauth.mfa.totp import views as totp
from allauth.mfa.webauthn import views as webauthn
from django.db import transaction
from django.http import HttpResponse
from django.urls import include, path, re_path
from django.views.generic import RedirectView

from accounts import views
from accounts.timing import evenly


def together(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Run an allauth view in one transaction, so that what it changes, its mail and its event stay together."""

    @wraps(view)
    def run(*args: Any, **kwargs: Any) -> HttpResponse:
        with transaction.atomic():
            return view(*args, **kwargs)

    return run


# These stand before allauth's own routes of the same names.
urlpatterns = [
    path("account/", views.account_settings, name="account_settings"),
    path("account/signup/", views.SignupView.as_view(), name="account_signup"),
    path("account/confirm-email/again/", evenly(views.resend_verification), name="resend_verification"),
    path("account/confirm-email/<str:key>/", views.ConfirmEmailView.as_view(), name="account_confirm_email"),
    path("account/email/", together(account.email), name="account_email"),
    path("account/password/change/", together(account.password_change), name="account_change_password"),
    path("account/password/reset/", evenly(together(account.password_reset)), name="account_reset_password"),
    re_path(
        r"^account/password/reset/key/(?P<uidb36>[0-9A-Za-z]+)-(?P<key>.+)/$",
        together(account.password_reset_from_key),
        name="account_reset_password_from_key",
    ),
    path("account/2fa/", RedirectView.as_view(pattern_name="account_settings"), name="mfa_index"),
    path("account/2fa/webauthn/", RedirectView.as_view(pattern_name="account_settings"), name="mfa_list_webauthn"),
    path("account/second-factor/", views.second_factor_start, name="second_factor_start"),
    path("account/second-factor/done/", views.second_factor_done, name="second_factor_done"),
    path("account/2fa/totp/activate/", together(totp.activate_totp), name="mfa_activate_totp"),
    path("account/2fa/totp/deactivate/", together(totp.deactivate_totp), name="mfa_deactivate_totp"),
    path("account/2fa/webauthn/add/", together(webauthn.add_webauthn), name="mfa_add_webauthn"),
    path("account/2fa/webauthn/keys/<int:pk>/remove/", together(webauthn.remove_webauthn), name="mfa_remove_webauthn"),
    path(
        "account/2fa/recovery-codes/generate/",
        together(codes.generate_recovery_codes),
        name="mfa_generate_recovery_codes",
    ),
    path("account/", include("allauth.urls")),
    path("staff/claim/<str:token>/", views.staff_claim, name="staff_claim"),
]
