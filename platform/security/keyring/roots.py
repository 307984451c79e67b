"""Which key sources there are, which root key is active, and the move from one to another."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.utils import timezone

from audit.services import SYSTEM, record
from security.binding import bind
from security.errors import KeyInUse, KeysDamaged, UnknownRootKey, WrongKey
from security.keyring.seams import seams
from security.models import KeyEncryptionKey, RootKey
from security.secret import Key
from security.sources.base import KeySource
from security.sources.hsm import HsmSource
from security.sources.keyfile import KeyFileSource

LONGEST = 90
State = RootKey.State


def sources() -> Mapping[str, KeySource]:
    """Return the configured key sources by kind. Both are there during a move, so both kinds of root keys open."""
    given = settings.HEARTH
    names = ("HEARTH_KEY_FILE", "HEARTH_HSM_MODULE", "HEARTH_HSM_TOKEN", "HEARTH_HSM_SLOT", "HEARTH_HSM_PIN_FILE")
    return _sources(*(given[name] for name in names))


@lru_cache(maxsize=8)
def _sources(file: str, module: str, token: str, slot: int, pin_file: str) -> Mapping[str, KeySource]:
    found: dict[str, KeySource] = {"file": KeyFileSource(Path(file))}
    if module:
        found["hsm"] = HsmSource(Path(module), token=token, slot=slot, pin_file=Path(pin_file))
    return found


def source(kind: str) -> KeySource:
    """Return the source of a kind, or raise `UnknownRootKey` with what to configure."""
    try:
        return sources()[kind]
    except KeyError:
        raise UnknownRootKey(
            f"No key source of the kind {kind!r} is configured, so what its root key protects can't be read. Nothing "
            "was written. Set HEARTH_HSM_MODULE, HEARTH_HSM_TOKEN and HEARTH_HSM_PIN_FILE."
        ) from None


def next_rotation(since: datetime) -> datetime:
    """Return when a key made at `since` is due: never more than 90 days later."""
    return since + timedelta(days=min(int(settings.HEARTH["HEARTH_KEY_ROTATION_DAYS"]), LONGEST))


def ensure_root() -> RootKey:
    """Return the active root key; on an empty database make one, or take the one that the source has already."""
    if found := RootKey.objects.filter(state=State.ACTIVE).first():
        return found
    origin = source(settings.HEARTH["HEARTH_KEY_SOURCE"])
    held = origin.roots()
    name = held[0] if held else origin.create()
    try:
        with transaction.atomic():
            return _activate(SYSTEM, name)
    except IntegrityError:  # another process was first
        return RootKey.objects.get(state=State.ACTIVE)


def wrap(kek: KeyEncryptionKey, key: Key) -> bytes:
    """Return the KEK's key wrapped by its root."""
    return source(kek.root_id.partition(":")[0]).wrap(kek.root_id, key, binding(kek))


def unwrap(kek: KeyEncryptionKey) -> Key:
    return source(kek.root_id.partition(":")[0]).unwrap(kek.root_id, bytes(kek.wrapped), binding(kek))


def binding(kek: KeyEncryptionKey) -> bytes:
    """Return the associated data of a wrapped KEK: another row's bytes don't open."""
    return bind("hearth kek v1", kek.id, kek.owner, kek.version)


def rotate_root(actor: Any, *, kind: str | None = None) -> RootKey:
    """Make a new root key (of another kind: move there) and let it be the active one; `move_keks` does the rest.

    Both roots can be read until then, so nothing stops. Calling it again after a crash makes one more root key.
    """
    present = ensure_root()
    name = source(kind or present.kind).create()
    with transaction.atomic():
        RootKey.objects.select_for_update().filter(state=State.ACTIVE).update(state=State.READABLE)
        return _activate(actor, name)


def move_keks(actor: Any) -> int:
    """Wrap every KEK by the active root key; return how many were moved.

    Each is one write by compare-and-set: a crash or a lost HSM leaves each KEK whole under one of the two roots, and
    the next call goes on. One that was damaged stops no other; `KeysDamaged` names them all at the end. Root keys that
    wrap nothing any more are retired before that.
    """
    target, moved = ensure_root(), 0
    damaged: list[str] = []
    for kek in unmoved(target).order_by("id").iterator(chunk_size=200):
        was = kek.root_id
        try:
            key = unwrap(kek)
        except WrongKey:
            damaged.append(f"{kek} ({kek.pk})")
            continue
        with key:
            kek.root = target
            wrapped = wrap(kek, key)
        moved += (
            KeyEncryptionKey.objects.filter(pk=kek.pk, root_id=was)
            .exclude(state=KeyEncryptionKey.State.DESTROYED)
            .update(root=target, wrapped=wrapped)
        )
    for root in RootKey.objects.filter(state=State.READABLE):
        if not in_use(root):
            retire(actor, root)
    if damaged:
        raise KeysDamaged(
            f"{moved} keys were moved to the root key {target.id}, and {len(damaged)} were not: they were changed in "
            f"the database and can't be opened. They are {', '.join(damaged)}. What they protect can't be read until "
            "they are restored from a key bundle or a backup of the database. Keep the root keys that are there.",
            moved=moved,
        )
    return moved


def unmoved(target: RootKey) -> QuerySet[KeyEncryptionKey]:
    """Return the KEKs that another root key wraps."""
    return KeyEncryptionKey.objects.exclude(state=KeyEncryptionKey.State.DESTROYED).exclude(root=target)


def in_use(root: RootKey) -> int:
    """Return how many things only this root key opens: KEKs, and what others registered."""
    keks = KeyEncryptionKey.objects.filter(root=root).exclude(state=KeyEncryptionKey.State.DESTROYED).count()
    return keks + sum(ask(root) for ask in seams.root_needed)


@transaction.atomic
def retire(actor: Any, root: RootKey) -> None:
    """Say that a root key is needed no more: it may be removed from its source. Refused while anything needs it."""
    root = RootKey.objects.select_for_update().get(pk=root.pk)
    if root.state == State.ACTIVE or (count := in_use(root)):
        reason = "is the active one" if root.state == State.ACTIVE else f"is still needed by {count} others"
        raise KeyInUse(f"The root key {root.id} {reason}. Nothing was changed. Run: manage.py keys rotate-root")
    RootKey.objects.filter(pk=root.pk).update(state=State.RETIRED)
    record(actor=actor, verb="root.retire", object=root)


def _activate(actor: Any, name: str) -> RootKey:
    now = timezone.now()
    values = {"state": State.ACTIVE, "rotate_after": next_rotation(now)}
    root, _ = RootKey.objects.update_or_create(id=name, defaults=values)
    record(actor=actor, verb="root.activate", object=root, after=dict(source(root.kind).describe()))
    return root


def organisation_of(owner: uuid.UUID) -> uuid.UUID | None:
    """Return the owner as the trail names it: the platform is no organisation."""
    return owner if owner.int else None
