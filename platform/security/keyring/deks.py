"""Data keys: a fresh one for each object, wrapped by its owner's KEK and bound to what it is for."""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from django.db import IntegrityError, transaction

from security import xchacha
from security.binding import bind
from security.errors import KeyGone, WrongKey
from security.keyring import generation, keks
from security.keyring.cache import KeyCache
from security.models import DataKey, KeyEncryptionKey
from security.secret import Key

cache = KeyCache()


@dataclass(frozen=True)
class Context:
    """What a data key is for. Opening it needs the same words."""

    owner: uuid.UUID
    purpose: str
    server: uuid.UUID | None = None
    object: str = ""


class Opened(NamedTuple):
    """A data key's id, which the object carries, and the key. Wipe it after use."""

    id: uuid.UUID
    key: Key


def new_data_key(context: Context) -> Opened:
    """Make a data key. The caller writes its id with the object, inside the same transaction where it has one."""
    for _ in range(keks.TRIES):
        if made := _make(context, shared=False):
            return made
    raise keks.changed(context.owner)


def open_data_key(identity: uuid.UUID, context: Context) -> Key:
    """Return a data key, or raise `KeyGone` (destroyed or unknown) or `WrongKey` (of something else, or changed)."""
    seen = generation.current()
    if key := cache.get(identity, (context, seen)):
        return key
    found = DataKey.objects.select_related("kek").filter(pk=identity).first()
    if found is None:
        raise KeyGone(
            f"The data key {identity} of {_what(context)} is not in the keyring: it was erased, or never was. Where it "
            "was lost with the database, restore the keyring from its bundle."
        )
    if (mine := of(found)) != context:
        raise WrongKey(
            f"The data key {identity} belongs to {_what(mine)}, not to {_what(context)}. Nothing was opened."
        )
    key = unwrap(found)
    if found.shared:
        cache.put(identity, key, (context, seen))
    return key


def shared_data_key(context: Context) -> Opened:
    """Return the one data key of a column, made at its first use. A marked one (compromise) is never returned."""
    current = DataKey.objects.select_related("kek").filter(
        owner=context.owner, purpose=context.purpose, shared=True, reencrypt__isnull=True
    )
    seen = generation.current()
    for _ in range(keks.TRIES):
        if found := current.first():
            key = cache.get(found.pk, (context, seen))
            if key is None:
                key = unwrap(found)
                cache.put(found.pk, key, (context, seen))
            return Opened(found.pk, key)
        if made := _make(context, shared=True):
            return made
    raise keks.changed(context.owner)


def unwrap(data_key: DataKey) -> Key:
    """Open a row's key by its KEK."""
    with keks.open_kek(data_key.kek) as kek:
        return unwrap_with(kek, data_key)


def unwrap_with(kek: Key, data_key: DataKey) -> Key:
    try:
        return Key(xchacha.open_box(kek.value, bytes(data_key.wrapped), binding(data_key, data_key.kek_id)))
    except xchacha.InvalidTag:
        raise WrongKey(
            f"The data key {data_key.pk} of {_what(of(data_key))} was changed in the database, so what it encrypts "
            "can't be read now. Nothing was written. Restore the keyring from its bundle."
        ) from None


def wrap_with(kek: Key, kek_id: uuid.UUID, data_key: DataKey, key: Key) -> bytes:
    """Return a row's key as the KEK `kek_id` wraps it."""
    return xchacha.seal_box(kek.value, key.value, binding(data_key, kek_id))


def binding(data_key: DataKey, kek_id: uuid.UUID) -> bytes:
    """Return the associated data of a wrapped data key: its own row, its purpose, and the version that wraps it."""
    row = data_key
    return bind("hearth dek v1", row.pk, kek_id, row.owner, row.purpose, row.server, row.object, int(row.shared))


def of(data_key: DataKey) -> Context:
    """Return what a row says it is for."""
    return Context(data_key.owner, data_key.purpose, data_key.server, data_key.object)


def _make(context: Context, *, shared: bool) -> Opened | None:
    """Make a data key; None where another process was first, or the version was retired in between: look again."""
    kek: KeyEncryptionKey = keks.ensure_kek(context.owner)
    row = DataKey(
        kek=kek,
        owner=context.owner,
        purpose=context.purpose,
        server=context.server,
        object=context.object,
        shared=shared,
    )
    key = Key.fresh()
    with keks.open_kek(kek) as wrapping:
        row.wrapped = wrap_with(wrapping, kek.pk, row, key)
    with suppress(IntegrityError), transaction.atomic():
        row.save(force_insert=True)
        return Opened(row.pk, key)
    key.wipe()
    return None


def _what(context: Context) -> str:
    return " ".join(filter(None, (context.purpose, context.object)))
