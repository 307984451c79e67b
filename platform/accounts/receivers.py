"""What follows from allauth's signals: the audit trail, and the mark that a session has proved a second factor.

The views that change something run in one transaction (accounts/urls.py), so that a change and its event are both there
or neither. Only signing in has no change of ours to go with: its event stands alone.
"""

from __future__ import annotations

from typing import Any

from allauth.account import signals as account
from allauth.account.authentication import get_authentication_records
from allauth.account.internal.flows.login import record_authentication
from allauth.account.models import EmailAddress
from allauth.mfa import signals as mfa
from allauth.mfa.models import Authenticator
from django.db import transaction
from django.db.models.signals import post_delete, post_save
from django.dispatch import receiver
from django.http import HttpRequest

from accounts import trail
from accounts.models import User


@receiver(account.user_signed_up)
def on_sign_up(user: User, **_: Any) -> None:
    with transaction.atomic():
        trail.signed_up(user)


@receiver(account.email_confirmed)
def on_verified(email_address: EmailAddress, **_: Any) -> None:
    with transaction.atomic():
        trail.address_verified(email_address.user, email_address.email)


@receiver(account.email_changed)
def on_address_changed(
    user: User, from_email_address: EmailAddress | None, to_email_address: EmailAddress, **_: Any
) -> None:
    # allauth sends this for the first address too; that one is `on_verified`.
    if from_email_address is not None:
        with transaction.atomic():
            trail.address_changed(user, from_email_address.email, to_email_address.email)


@receiver(account.user_logged_in)
def on_sign_in(request: HttpRequest, user: User, **_: Any) -> None:
    methods = [str(record.get("type") or record["method"]) for record in get_authentication_records(request, user)]
    with transaction.atomic():
        trail.signed_in(user, methods)


@receiver(mfa.authentication_failed)
def on_wrong_code(user: User, **_: Any) -> None:
    with transaction.atomic():
        trail.sign_in_failed(user, "second factor")


@receiver(account.password_changed)
def on_password_changed(user: User, **_: Any) -> None:
    with transaction.atomic():
        trail.password_changed(user, "settings")


@receiver(account.password_reset)
def on_password_reset(user: User, **_: Any) -> None:
    with transaction.atomic():
        trail.password_changed(user, "mail link")


@receiver(mfa.authenticator_added)
def on_factor_proved(request: HttpRequest, user: User, authenticator: Authenticator, **_: Any) -> None:
    """A factor is added only by using it once, so the session that did it has proved it."""
    if authenticator.type != Authenticator.Type.RECOVERY_CODES:
        record_authentication(request, user, "mfa", id=authenticator.pk, type=authenticator.type, reauthenticated=True)


@receiver(post_save, sender=Authenticator)
def on_factor_saved(instance: Authenticator, created: bool, **_: Any) -> None:
    # allauth's own signal comes after the commit; the event belongs to the same transaction.
    if created:
        with transaction.atomic():
            trail.factor_added(instance.user, instance.type)


@receiver(post_delete, sender=Authenticator)
def on_factor_deleted(instance: Authenticator, **_: Any) -> None:
    with transaction.atomic():
        trail.factor_removed(instance.user, instance.type)
