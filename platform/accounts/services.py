"""The verbs on people: the staff link, and what a person calls themselves."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta

from allauth.account.models import EmailAddress
from django.contrib.sessions.models import Session
from django.db import IntegrityError, transaction
from django.db.models import Exists, OuterRef
from django.urls import reverse
from django.utils import timezone

from accounts import trail
from accounts.models import StaffLink, User

STAFF_LINK_LIFETIME = timedelta(hours=24)
# Links to verify an address work for two days; after a week nobody comes back, and the address is free again.
UNPROVED_LIFETIME = timedelta(days=7)
BATCH = 1000


class Refused(Exception):
    """A verb that was not carried out; the text says why, for a person. `field` names the form's field, if any."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message, self.field = message, field


class LinkSpent(Refused):
    """The staff link was used, has expired, was replaced by a newer one, or never existed."""


def staff_link_needed() -> bool:
    """Tell whether nobody can enter the staff console yet."""
    return not User.objects.filter(is_superuser=True, is_active=True).exists()


def make_staff_link() -> str:
    """Return the path of a new one-time link that makes a staff account; older unused links stop working."""
    token = secrets.token_urlsafe(32)
    now = timezone.now()
    with transaction.atomic():
        StaffLink.objects.filter(used=None, expires__gt=now).update(expires=now)
        StaffLink.objects.create(token_hash=_hash(token), expires=now + STAFF_LINK_LIFETIME)
    return reverse("staff_claim", args=[token])


def staff_link_works(token: str) -> bool:
    """Tell whether `token` could be used now."""
    return StaffLink.objects.filter(token_hash=_hash(token), used=None, expires__gt=timezone.now()).exists()


def claim_staff_link(token: str, email: str, password: str) -> User:
    """Make the staff account that `token` stands for. Of two who try at once, one gets it, the other `LinkSpent`."""
    now = timezone.now()
    with transaction.atomic():
        spent = StaffLink.objects.filter(token_hash=_hash(token), used=None, expires__gt=now).update(used=now)
        if not spent:
            raise LinkSpent("This link was used already, has expired, or was replaced by a newer one.")
        user = _make_superuser(email, password)
        StaffLink.objects.filter(token_hash=_hash(token)).update(user=user)
        trail.staff_made(user)
    return user


def rename(user: User, name: str) -> None:
    """Change what other members see."""
    with transaction.atomic():
        person = User.objects.select_for_update().get(pk=user.pk)
        before, person.name = person.name, name
        person.save(update_fields=["name"])
        trail.renamed(person, before)


def set_active(actor: User, user: User, active: bool) -> bool:
    """Close an account (its sessions end with it) or open it again; return whether anything changed."""
    if actor.pk == user.pk:
        raise Refused("You can't close your own account here. Nothing was changed; ask somebody else of the staff.")
    if user.is_superuser and not actor.is_superuser:
        raise Refused(f"{user} has more rights than you. Nothing was changed.")
    with transaction.atomic():
        changed = User.objects.filter(pk=user.pk, is_active=not active).update(is_active=active)
        if changed:
            trail.activity_changed(actor, user, active)
    return bool(changed)


def forget_old() -> int:
    """Remove what has expired: sessions, staff links, sign-ups that nobody ever proved. Return how many rows went."""
    now = timezone.now()
    sessions = Session.objects.filter(expire_date__lt=now).delete()[0]
    links = StaffLink.objects.filter(used=None, expires__lt=now - STAFF_LINK_LIFETIME).delete()[0]
    proved = EmailAddress.objects.filter(user=OuterRef("pk"), verified=True)
    never = User.objects.filter(
        ~Exists(proved), date_joined__lt=now - UNPROVED_LIFETIME, last_login=None, is_staff=False
    )
    return sessions + links + _forget_unproved(list(never.order_by("date_joined")[:BATCH]))


def _forget_unproved(people: list[User]) -> int:
    for person in people:
        with transaction.atomic():
            trail.forgotten(person)
            person.delete()
    return len(people)


def _make_superuser(email: str, password: str) -> User:
    try:
        with transaction.atomic():
            user = User.objects.create_superuser(email, password)
            EmailAddress.objects.create(user=user, email=user.email, primary=True, verified=True)
    except IntegrityError:
        raise Refused(
            "There is an account with this address already. Nothing was changed and the link still works: "
            "type another address.",
            field="email",
        ) from None
    return user


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
