"""What the people who run this Hearth are told by mail: each thing at most once a day."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta

from allauth.account.models import EmailAddress
from django.db import transaction
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from notifications.links import public_url
from notifications.models import Mail
from notifications.services import queue_mail
from security.errors import SecurityError

log = logging.getLogger(__name__)
AGAIN_AFTER = timedelta(days=1)
SHOWN = 20
KEYS_OVERDUE = "Hearth: keys are past their rotation"
PLACES_LATE = "Hearth: key bundles are not written"


def keys_overdue(sentences: Sequence[str]) -> None:
    """Tell staff which keys are past their rotation (the keyring's seam)."""
    _tell(KEYS_OVERDUE, sentences, ("All keys", "admin:security_keyencryptionkey_changelist"))


def places_late(sentences: Sequence[str]) -> None:
    """Tell staff which places get no key bundles (the keyring's seam)."""
    _tell(PLACES_LATE, sentences, ("All key bundles", "admin:security_bundlefile_changelist"))


def _tell(subject: str, sentences: Sequence[str], page: tuple[str, str]) -> None:
    more = len(sentences) - SHOWN
    lines = [*sentences[:SHOWN], *([f"And {more} more."] if more > 0 else [])]
    text = "Hello,\n\n" + "\n\n".join(lines) + f"\n\n{page[0]}: {public_url(reverse(page[1]))}\n\nHearth\n"
    try:
        mail_staff(subject, text)
    except SecurityError as error:
        # A mail is sealed too: with the root key's source away there is the log and the metric.
        log.error("Staff could not be mailed (%s): %s", subject, error)


@transaction.atomic
def mail_staff(subject: str, text: str) -> int:
    """Queue a mail to everybody on the staff who has had none with this subject for a day; return how many."""
    proved = EmailAddress.objects.filter(verified=True).values("user_id")
    # Locked, so that two workers who find the same thing at once send one mail.
    staff = User.objects.select_for_update().filter(is_staff=True, is_active=True, pk__in=proved).order_by("pk")
    recent = Mail.objects.filter(subject=subject, created__gt=timezone.now() - AGAIN_AFTER)
    due = [person for person in staff if not recent.filter(recipient=person.email).exists()]
    for person in due:
        queue_mail(recipient=person.email, subject=subject, text=text)
    return len(due)
