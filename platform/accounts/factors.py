"""What is known of a person's second factors, and of the factor that a session was opened with."""

from __future__ import annotations

from allauth.account.authentication import get_authentication_records
from allauth.mfa.models import Authenticator
from django.http import HttpRequest
from django.urls import reverse

from accounts.models import User

# Where to go on once a second factor is set up; kept in the session.
AFTER_FACTOR = "accounts.after_factor"
# Recovery codes never stand alone: they go when the last of these goes.
FACTORS = (Authenticator.Type.TOTP, Authenticator.Type.WEBAUTHN)


def has_factor(user: User) -> bool:
    """Tell whether the person has an authenticator app or a passkey."""
    return bool(Authenticator.objects.filter(user_id=user.pk, type__in=FACTORS).exists())


def session_is_verified(request: HttpRequest, user: User) -> bool:
    """Tell whether this very session was opened, or confirmed later, with a second factor of `user`."""
    return any(record.get("method") == "mfa" for record in get_authentication_records(request, user))


def challenge_url(user: User) -> str:
    """Return the page where a signed-in person proves a factor: codes where they have an app, else the passkey."""
    has_app = Authenticator.objects.filter(user_id=user.pk, type=Authenticator.Type.TOTP).exists()
    return reverse("mfa_reauthenticate" if has_app else "mfa_reauthenticate_webauthn")
