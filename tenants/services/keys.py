"""Verbs on an organisation's keys. The keyring writes them; here is who may ask for what, and when it is refused."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone

from security.errors import SecurityError
from security.keyring import erasure, keks
from security.models import Erasure, KeyEncryptionKey
from tenants.errors import Refused
from tenants.models import Organisation, Server, Subscription

log = logging.getLogger(__name__)
ROTATE_AT_MOST_EVERY = timedelta(hours=1)
"""Each rotation moves every data key; one that is asked for again and again would move them for ever."""


def rotate_keys(*, actor: Any, organisation: Organisation) -> KeyEncryptionKey:
    """Make the next version of the organisation's key. Data keys move to it afterwards; no data is read."""
    try:
        with transaction.atomic():
            # Two at once take turns, and the second is too early.
            Organisation.objects.select_for_update().get(pk=organisation.pk)
            _refuse_rotation(organisation)
            return keks.rotate(actor, organisation.pk)
    except SecurityError as error:
        # Which device or file it is concerns whoever runs this Hearth.
        log.warning("The key of organisation %s was not rotated: %s", organisation.pk, error)
        raise Refused(
            "The place where Hearth keeps its root key does not answer. Nothing was changed, and your key is still the "
            "one from before. Try again in a few minutes."
        ) from None


@transaction.atomic
def request_erasure(*, actor: Any, organisation: Organisation, confirm: str) -> Erasure:
    """Have the organisation's keys destroyed once its final backup has expired. `confirm` repeats its address."""
    # The lock that new servers wait for.
    list(Subscription.objects.select_for_update().filter(organisation=organisation))
    if confirm.strip() != organisation.slug:
        raise Refused(f"That is not the address of this organisation. Nothing was changed. Type {organisation.slug}.")
    if count := Server.objects.filter(organisation=organisation, deleted__isnull=True).count():
        raise Refused(
            f"{organisation.name} has {count} server{'s' if count > 1 else ''}. Nothing was changed. Keys are erased "
            "after the last server is removed for good: delete the servers first, and wait for the grace period's end."
        )
    return erasure.request(actor, organisation.pk)


@transaction.atomic
def withdraw_erasure(*, actor: Any, organisation: Organisation) -> None:
    """Take the request back, while the keys are still there."""
    if not erasure.withdraw(actor, organisation.pk):
        raise Refused(
            f"No erasure of {organisation.name} can be taken back: none was asked for, or its keys are destroyed."
        )


def refuse_erasing(organisation: Organisation) -> None:
    """Refuse what would need the keys of an organisation whose erasure was asked for."""
    if Erasure.objects.filter(owner=organisation.pk).exists():
        raise Refused(
            "The erasure of this organisation's keys was asked for, so it can have no new server. No server was made. "
            "Ask whoever runs this Hearth to take the request back, or make another organisation."
        )


def _refuse_rotation(organisation: Organisation) -> None:
    if Erasure.objects.filter(owner=organisation.pk, destroyed__isnull=False).exists():
        raise Refused("The keys of this organisation were erased. There is nothing to rotate.")
    active = KeyEncryptionKey.objects.filter(owner=organisation.pk, state=KeyEncryptionKey.State.ACTIVE).first()
    if active is None:
        raise Refused("This organisation has no key yet: its first server brings one. Nothing was changed.")
    if timezone.now() - active.created < ROTATE_AT_MOST_EVERY:
        raise Refused(
            "The present key is less than an hour old. Nothing was changed. A key can be rotated once an hour; if you "
            "think that it is known to others, tell whoever runs this Hearth."
        )
