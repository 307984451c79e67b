"""Crypto-erasure of an organisation: its keys go after its final backup, and it is complete after their last copy.

What can't be taken back is decided by the database's clock: that of one worker alone may be wrong.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import F

from audit.services import SYSTEM, record
from security.errors import SecurityError
from security.keyring import deks, generation, keks
from security.keyring.copies import keep_until
from security.keyring.publish import database_time
from security.keyring.seams import latest, seams
from security.models import PLATFORM, DataKey, Erasure, KeyEncryptionKey, Rewrap

State = KeyEncryptionKey.State


@transaction.atomic
def request(actor: Any, owner: uuid.UUID) -> Erasure:
    """Ask for the erasure of an owner's keys. They stay until the final backup has expired."""
    if owner == PLATFORM:
        raise SecurityError("The platform's own keys can't be erased: everything would be lost. Nothing was changed.")
    plan = planned(owner)
    row, created = Erasure.objects.get_or_create(owner=owner, defaults={"destroy_after": plan.destroy_after})
    if created:
        after = {"destroy_after": row.destroy_after.isoformat()}
        record(actor=actor, verb="keys.erase", object=row, organisation_id=owner, after=after)
    return row


def planned(owner: uuid.UUID) -> Erasure:
    """Return what a request made now would be, unsaved: for whoever must see the dates before they ask."""
    return Erasure(owner=owner, destroy_after=keep_until(owner) or database_time())


@transaction.atomic
def withdraw(actor: Any, owner: uuid.UUID) -> bool:
    """Take a request back; False once the keys are destroyed."""
    row = Erasure.objects.select_for_update().filter(owner=owner, destroyed__isnull=True).first()
    if row is None:
        return False
    record(actor=actor, verb="keys.keep", object=row, organisation_id=owner)
    row.delete()
    return True


def complete_on(row: Erasure) -> datetime:
    """Return the date to show: from then on nobody can read the data any more. It may still move later, until then."""
    if row.completed:
        return row.completed
    dates = [row.destroy_after, row.complete_after, *(ask(row.owner) for ask in seams.copies_until)]
    return latest(dates) or row.destroy_after


def advance(actor: Any = SYSTEM) -> int:
    """Destroy the keys whose date has come and complete what has no copies left; return how many rows changed."""
    changed = 0
    for owner in list(Erasure.objects.filter(completed__isnull=True).values_list("owner", flat=True)):
        with transaction.atomic():
            row = Erasure.objects.select_for_update().get(owner=owner)
            changed += (_destroy if row.destroyed is None else _complete)(actor, row)
    return changed


def learn(told: Iterable[Erasure], origin: uuid.UUID, actor: Any = SYSTEM) -> int:
    """Carry out the erasures that a key bundle (`origin`) tells of and this database does not know; return how many.

    An older copy of the database was restored: it has keys again that were destroyed since. Requests that were not
    carried out are left alone: one may have been withdrawn since.
    """
    known = {PLATFORM, *Erasure.objects.filter(destroyed__isnull=False).values_list("owner", flat=True)}
    return sum(_learn(actor, each, origin) for each in told if each.destroyed and each.owner not in known)


def _destroy(actor: Any, row: Erasure) -> bool:
    now = database_time()
    # Asked again: a backup made since the request may expire later.
    row.destroy_after = latest([row.destroy_after, keep_until(row.owner)]) or row.destroy_after
    if row.destroy_after > now:
        row.save(update_fields=["destroy_after"])
        return False
    _end(actor, row, now)
    record(actor=actor, verb="keys.destroyed", object=row, organisation_id=row.owner)
    return True


@transaction.atomic
def _learn(actor: Any, told: Erasure, origin: uuid.UUID) -> bool:
    dates = {"requested": told.requested, "destroy_after": told.destroy_after}
    row, _ = Erasure.objects.select_for_update().get_or_create(owner=told.owner, defaults=dates)
    if row.destroyed:
        return False
    if KeyEncryptionKey.objects.filter(owner=row.owner).exclude(state=State.DESTROYED).exists():
        # They are destroyed a second time, and what copied this database meanwhile holds them again.
        _end(actor, row, database_time())
    else:
        row.destroyed, row.complete_after, row.completed = told.destroyed, told.complete_after, told.completed
        row.save(update_fields=["destroyed", "complete_after", "completed"])
    after = {"bundle": str(origin), "destroyed_before": told.destroyed and told.destroyed.isoformat()}
    record(actor=actor, verb="keys.destroyed_again", object=row, organisation_id=row.owner, after=after)
    return True


def _end(actor: Any, row: Erasure, now: datetime) -> None:
    """Destroy an owner's keys, behind the lock of the erasure's row."""
    # Marked first: nobody makes a new key for this owner after the lock is gone, and copies are counted from now.
    row.destroyed = now
    row.save(update_fields=["destroy_after", "destroyed"])
    row.complete_after = latest([now, *(ask(row.owner) for ask in seams.copies_until)])
    row.save(update_fields=["complete_after"])
    versions = list(KeyEncryptionKey.objects.select_for_update().filter(owner=row.owner))
    for identity in DataKey.objects.filter(owner=row.owner, shared=True).values_list("pk", flat=True):
        deks.cache.forget(identity)
    DataKey.objects.filter(owner=row.owner).delete()
    generation.replace()
    for kek in versions:
        if kek.state != State.DESTROYED:
            keks.wipe(actor, kek)
    Rewrap.objects.filter(owner=row.owner, finished__isnull=True).update(finished=now, total=F("done"), lease=None)


def _complete(actor: Any, row: Erasure) -> bool:
    now = database_time()
    row.complete_after = complete_on(row)
    row.completed = now if row.complete_after <= now else None
    row.save(update_fields=["complete_after", "completed"])
    if row.completed:
        record(actor=actor, verb="keys.erased", object=row, organisation_id=row.owner)
    return row.completed is not None
