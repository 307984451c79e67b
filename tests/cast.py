"""The cast of the tests: Alice owns, Bob is a member, Charlie is a stranger. Fixtures import it late."""

from __future__ import annotations

import time

from allauth.account.internal.flows.login import (
    _AUTHENTICATION_METHODS_USER_SESSION_KEY,
    AUTHENTICATION_METHODS_SESSION_KEY,
)
from allauth.account.internal.userkit import user_id_to_str
from allauth.account.models import EmailAddress
from allauth.mfa.totp.internal.auth import TOTP
from django.test import Client

from accounts.models import User

PASSWORD = "correct horse battery"
TOTP_SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"


def make_user(email: str, *, verified: bool = True, factor: bool = True, staff: bool = False) -> User:
    """Create a person as sign-up leaves them: a verified address and an authenticator app."""
    user = User.objects.create_user(
        email, PASSWORD, name=email.partition("@")[0].title(), is_staff=staff, is_superuser=staff
    )
    EmailAddress.objects.create(user=user, email=user.email, verified=verified, primary=True)
    if factor:
        TOTP.activate(user, TOTP_SECRET)
    return user


def client_for(user: User, *, factor: bool = True) -> Client:
    """Return a browser in which `user` is signed in; with `factor`, by password and code."""
    client = Client()
    client.force_login(user)
    session = client.session
    records = [{"method": "password", "at": time.time(), "email": user.email}]
    if factor:
        records.append({"method": "mfa", "at": time.time(), "type": "totp"})
    session[AUTHENTICATION_METHODS_SESSION_KEY] = records
    session[_AUTHENTICATION_METHODS_USER_SESSION_KEY] = user_id_to_str(user)
    session.save()
    return client
