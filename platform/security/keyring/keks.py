"""Key-encryption keys: made, rotated, retired and destroyed. Each change and its audit event are one transaction."""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import Any

from django.db import IntegrityError, transaction
from django.utils import timezone

from audit.services import SYSTEM, record
from security.errors import KeyGone, KeyInUse, KeysChanged
from security.keyring import generation, roots
from security.keyring.cache import KeyCache
from security.keyring.seams import seams
from security.models import DataKey, Erasure, KeyEncryptionKey, owner_name
from security.secret import Key

State = KeyEncryptionKey.State
TRIES = 5
"""How often something is looked for again that another process made, replaced or retired in between."""
cache = KeyCache()


def ensure_kek(owner: uuid.UUID) -> KeyEncryptionKey:
    """Return the owner's active KEK; the first call makes it."""
    active = KeyEncryptionKey.objects.filter(owner=owner, state=State.ACTIVE)
    for _ in range(TRIES):
        if found := active.first():
            return found
        refuse_erased(owner)
        with suppress(IntegrityError), transaction.atomic():  # another process was first
            return _new(SYSTEM, owner, "kek.create")
    raise changed(owner)


def open_kek(kek: KeyEncryptionKey) -> Key:
    """Return the KEK's key, from memory where it was used lately. Wipe it after use."""
    if kek.state == State.DESTROYED:
        raise destroyed(kek)
    seen = generation.current()
    if (key := cache.get(kek.pk, seen)) is None:
        # The row in hand may be older than the generation that the key would be kept under.
        if KeyEncryptionKey.objects.filter(pk=kek.pk, state=State.DESTROYED).exists():
            raise destroyed(kek)
        key = roots.unwrap(kek)
        cache.put(kek.pk, key, seen)
    return key


@transaction.atomic
def rotate(actor: Any, owner: uuid.UUID, *, compromised: bool = False) -> KeyEncryptionKey:
    """Make the owner's next KEK version. The old one only opens, until a rewrap has moved its data keys.

    With `compromised` every data key of the owner is marked too: moving them would not help against somebody who knew
    them, so what they encrypt must be encrypted again.
    """
    ensure_kek(owner)
    # All versions are locked, whichever a key bundle brought back: who waits for another's rotation sees its new
    # version afterwards, and data keys that are being made under the old one are there before any is marked.
    list(KeyEncryptionKey.objects.select_for_update().filter(owner=owner))
    old = KeyEncryptionKey.objects.get(owner=owner, state=State.ACTIVE)
    return _replace(actor, old, compromised=compromised)


def rotate_due(actor: Any = SYSTEM) -> int:
    """Rotate every KEK whose time has come; return how many. One that fails does not stop the others."""
    count, first_error = 0, None
    due = KeyEncryptionKey.objects.filter(state=State.ACTIVE, rotate_after__lte=timezone.now())
    for pk in list(due.values_list("pk", flat=True)):
        try:
            with transaction.atomic():
                # Looked at again behind the lock: two that rotate at once make one new version.
                if old := due.select_for_update().filter(pk=pk).first():
                    _replace(actor, old, compromised=False)
                    count += 1
        except Exception as error:  # the first is raised after all had their turn
            first_error = first_error or error
    if first_error is not None:
        raise first_error
    return count


def needed_by(kek: KeyEncryptionKey) -> int:
    """The proof: how many things this KEK still wraps."""
    return DataKey.objects.filter(kek=kek).count() + sum(ask(kek) for ask in seams.wrapped_elsewhere)


@transaction.atomic
def destroy(actor: Any, kek: KeyEncryptionKey) -> None:
    """Destroy one version, only when nothing is wrapped by it. The row stays, without the key."""
    kek = KeyEncryptionKey.objects.select_for_update().get(pk=kek.pk)
    if kek.state == State.DESTROYED:
        return
    if kek.state == State.ACTIVE:
        raise KeyInUse(f"The key {kek} is the active one. Nothing was changed. Rotate it first.")
    if count := needed_by(kek):
        raise KeyInUse(f"The key {kek} still wraps {count} data keys. Nothing was changed. Run: manage.py keys rewrap")
    wipe(actor, kek)


def wipe(actor: Any, kek: KeyEncryptionKey) -> None:
    """Remove a KEK's wrapped bytes. Call inside the transaction that locked it and proved that nothing needs it."""
    before = {"state": kek.state}
    kek.state, kek.wrapped, kek.destroyed = State.DESTROYED, b"", timezone.now()
    kek.save(update_fields=["state", "wrapped", "destroyed"])
    organisation = roots.organisation_of(kek.owner)
    record(actor=actor, verb="kek.destroy", object=kek, organisation_id=organisation, before=before)
    generation.replace()
    cache.forget(kek.pk)
    # Once more at the end: another thread may have opened it in between.
    transaction.on_commit(lambda: cache.forget(kek.pk))


def refuse_erased(owner: uuid.UUID) -> None:
    """Raise `KeyGone` for an owner whose keys were erased: a new key would hide that the old data is gone."""
    if Erasure.objects.filter(owner=owner, destroyed__isnull=False).exists():
        raise KeyGone(f"The keys of {owner_name(owner)} were erased. Nothing can be encrypted or read for it.")


def changed(owner: uuid.UUID) -> KeysChanged:
    """Return the error for an owner whose keys never held still."""
    return KeysChanged(f"The keys of {owner_name(owner)} were changed {TRIES} times meanwhile. Nothing was written.")


def destroyed(kek: KeyEncryptionKey) -> KeyGone:
    return KeyGone(f"The key {kek} was destroyed. What it protected can't be read any more, by anybody.")


def _replace(actor: Any, old: KeyEncryptionKey, *, compromised: bool) -> KeyEncryptionKey:
    now = timezone.now()
    old.state = State.DECRYPT_ONLY
    old.compromised = now if compromised else old.compromised
    old.save(update_fields=["state", "compromised"])
    new = _new(actor, old.owner, "kek.compromised" if compromised else "kek.rotate", before=old)
    if compromised:
        marked = DataKey.objects.filter(owner=old.owner, reencrypt__isnull=True)
        keys = list(marked.defer("wrapped")) if seams.reencrypt else []
        marked.update(reencrypt=now)
        for tell in seams.reencrypt:
            tell(old.owner, keys)
        generation.replace()
    return new


def _new(actor: Any, owner: uuid.UUID, verb: str, before: KeyEncryptionKey | None = None) -> KeyEncryptionKey:
    last = KeyEncryptionKey.objects.filter(owner=owner).order_by("-version").first()
    kek = KeyEncryptionKey(
        owner=owner,
        version=last.version + 1 if last else 1,
        root=roots.ensure_root(),
        rotate_after=roots.next_rotation(timezone.now()),
    )
    with Key.fresh() as key:
        kek.wrapped = roots.wrap(kek, key)
        kek.save(force_insert=True)
    record(
        actor=actor,
        verb=verb,
        object=kek,
        organisation_id=roots.organisation_of(owner),
        before={"version": before.version} if before else None,
        after={"version": kek.version, "root": kek.root_id},
    )
    return kek
