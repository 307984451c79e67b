"""How allauth behaves here: the client's address, when to ask for a password again, sealed second-factor secrets."""

from __future__ import annotations

import base64
import io
from datetime import timedelta
from typing import Any

import qrcode
from allauth.account.adapter import DefaultAccountAdapter
from allauth.core.internal import ratelimit
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.models import Authenticator
from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from qrcode.image.svg import SvgPathFillImage

from accounts import known, trail
from accounts.factors import has_factor, session_is_verified
from accounts.models import User
from notifications.links import public_url
from observability.middleware import client_address
from security.sealing import seal, unseal

FIRST_FACTOR_WITHIN = timedelta(minutes=15)
TOTP_PURPOSE = "accounts.totp"
# What allauth puts into its mails' texts.
LINKS = ("activate_url", "password_reset_url", "signup_url")


class AccountAdapter(DefaultAccountAdapter):
    """Our sentences, our client address, and no second password prompt in the middle of a sign-up."""

    error_messages = DefaultAccountAdapter.error_messages | {
        "email_password_mismatch": "This address and password do not belong together. Nothing was changed; try again.",
        "too_many_login_attempts": "Too many failed attempts. Your account is unchanged. Try again in five minutes, "
        "sign in from a browser that you have used before, or set a new password by mail.",
        "incorrect_password": "This password is not right. Nothing was changed; try again.",
        "incorrect_code": "This code is not right. Type the newest one.",
        "enter_current_password": "This is not your present password. Nothing was changed; try again.",
        "rate_limited": "Too many attempts. Nothing was changed. Wait a few minutes, then try again.",
        "email_taken": "This address can't be used. Choose another one.",
        "duplicate_email": "This is your address already.",
        "same_as_current": "This is your address already. Type the new one.",
    }

    def get_client_ip(self, request: HttpRequest) -> str:
        return client_address(request) or "unknown"

    def is_safe_url(self, url: str) -> bool:
        """Only this very site is gone on to. ALLOWED_HOSTS, which allauth adds, always has the person's own machine."""
        return url_has_allowed_host_and_scheme(
            url, {self.request.get_host()}, require_https=bool(self.request.is_secure())
        )

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        links = {name: public_url(context[name]) for name in LINKS if name in context}
        super().send_mail(template_prefix, email, {**context, **links, "site": public_url().rstrip("/")})

    def post_login(self, request: HttpRequest, user: User, **kwargs: Any) -> HttpResponse:
        response: HttpResponse = super().post_login(request, user, **kwargs)
        known.remember(response, user.email)
        return response

    def _get_login_attempts_cache_key(self, request: HttpRequest, **credentials: Any) -> str:
        # allauth's own key has the Host header in it, with which one account would have a limit for each port.
        email = str(credentials.get("email", "")).lower()
        return f"{email}:{known.browser_of(request, email)}"

    def _delete_login_attempts_cached_email(self, request: HttpRequest, **credentials: Any) -> None:
        super()._delete_login_attempts_cached_email(request, **credentials)
        stranger = f"{str(credentials.get('email', '')).lower()}:"
        ratelimit.clear(request, app="allauth.account", action="login_failed", key=stranger)

    def get_login_redirect_url(self, request: HttpRequest) -> str:
        if settings.HEARTH["HEARTH_REQUIRE_MFA"] and isinstance(request.user, User) and not has_factor(request.user):
            return reverse("second_factor_start")
        return reverse("home")

    def get_password_change_redirect_url(self, request: HttpRequest) -> str:  # noqa: ARG002 (allauth's signature)
        return reverse("account_settings")

    def is_reauthentication_required(self, *, app: str, **kwargs: Any) -> bool:
        """A person who has just signed in and has no second factor yet is not asked for the same password once more."""
        user = self.request.user
        if app == "allauth.mfa" and isinstance(user, User) and user.last_login and not has_factor(user):
            return timezone.now() - user.last_login > FIRST_FACTOR_WITHIN
        return bool(super().is_reauthentication_required(app=app, **kwargs))

    def get_reauthentication_methods(self, user: User | AnonymousUser) -> list[dict[str, Any]]:
        """A session from before the second factor must prove that factor: a password alone can't take it off again."""
        methods: list[dict[str, Any]] = super().get_reauthentication_methods(user)
        if isinstance(user, User) and has_factor(user) and not session_is_verified(self.request, user):
            methods = [method for method in methods if method["id"] != "reauthenticate"]
        return methods

    def authentication_failed(self, request: HttpRequest, **credentials: Any) -> None:  # noqa: ARG002 (allauth's signature)
        # Only failures on real accounts enter the trail: allauth's limits bound those, but not invented addresses.
        user = User.objects.filter(email=str(credentials.get("email", "")).lower()).first()
        if user is not None:
            with transaction.atomic():
                trail.sign_in_failed(user, "password")


class MFAAdapter(DefaultMFAAdapter):
    """Secrets of second factors are sealed in the database."""

    error_messages = DefaultMFAAdapter.error_messages | {
        "incorrect_code": "This code is not right. Check that your device's clock is right, and type the newest code.",
        "add_email_blocked": "Remove your second factors before you change the address, and add them again after.",
    }

    def encrypt(self, text: str) -> str:
        return base64.b64encode(seal(text.encode(), TOTP_PURPOSE)).decode()

    def decrypt(self, encrypted_text: str) -> str:
        return unseal(base64.b64decode(encrypted_text), TOTP_PURPOSE).decode()

    def build_totp_svg(self, url: str) -> str:
        """Return the QR code on a white ground: on a dark page cameras would not find it."""
        image = io.BytesIO()
        qrcode.make(url, image_factory=SvgPathFillImage).save(image)
        return image.getvalue().decode()

    def generate_authenticator_name(self, user: User, type: Authenticator.Type) -> str:  # noqa: A002 (allauth's name)
        count = Authenticator.objects.filter(user_id=user.pk, type=type).count()
        return f"Passkey {count + 1}" if count else "Passkey"

    def get_totp_issuer(self) -> str:
        return "Hearth"

    def _get_site_name(self) -> str:
        return "Hearth"
