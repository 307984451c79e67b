"""Bring sealed values to the present form and key: those of version 1, and those whose data key was compromised."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.apps import apps
from django.conf import settings
from django.db import connection, models, transaction
from django.utils import timezone

from audit.services import SYSTEM, record
from security.errors import KeyFileError, KeyGone, UnsealError
from security.fields import SealedTextField
from security.models import PLATFORM, DataKey, RootKey
from security.sources.keyfile import name, read_root

logger = logging.getLogger(__name__)
IN_FLIGHT = timedelta(days=1)


@dataclass(frozen=True)
class Resealer:
    """Sealed values that lie in no sealed column. Both are given the ids of the data keys that must go."""

    label: str
    waiting: Callable[[list[bytes]], int]
    reseal: Callable[[list[bytes]], tuple[int, list[str]]]
    """Returns how many, and what could not be opened."""
    purposes: tuple[str, ...] = ()
    """What they are sealed for: a data key of one of these is removed when nothing waits for it any more."""


resealers: list[Resealer] = []
"""Higher layers add theirs in their app's `ready`."""


def waiting() -> int:
    """Return how many values are sealed in the old form, or by a compromised data key."""
    stale = _stale()
    columns = sum(len(_rows(model, field, stale)) for model, field in columns_of_all())
    return columns + sum(each.waiting(stale) for each in resealers)


def reseal() -> tuple[int, list[str]]:
    """Seal all of them anew, each row in its own transaction; return how many, and what could not be opened."""
    stale, done = _stale(), 0
    faults: list[str] = []
    for model, field in columns_of_all():
        for pk in _rows(model, field, stale):
            try:
                done += _one(model, field, pk)
            except (UnsealError, KeyGone) as error:
                faults.append(str(error))
    for each in resealers:
        more, unopened = each.reseal(stale)
        done += more
        faults += unopened
    for fault in faults:
        logger.warning("%s", fault)
    return done, faults


def remove_unused() -> int:
    """Remove marked data keys of columns and purposes that no value is sealed by any more; return how many.

    One that was marked in the last day stays: a transaction that began before the mark may still write a value by it.
    """
    old = DataKey.objects.filter(shared=True, reencrypt__lt=timezone.now() - IN_FLIGHT)
    return sum(_remove(key) for key in list(old) if _users(key) == 0)


def _users(key: DataKey) -> int | None:
    """Return how many values need a data key; None where nobody looks after all of its purpose's values."""
    kind, _, purpose = key.purpose.partition(":")
    if kind == "column":
        columns = [(m, f) for m, f in columns_of_all() if f"{m._meta.label_lower}.{f.attname}" == purpose]
        return sum(len(_rows(model, field, [key.pk.bytes])) for model, field in columns) if columns else None
    found = [each for each in resealers if purpose in each.purposes]
    return sum(each.waiting([key.pk.bytes]) for each in found) if found else None


@transaction.atomic
def _remove(key: DataKey) -> int:
    row = DataKey.objects.select_for_update().filter(pk=key.pk).first()
    if row is None:  # another worker was first
        return 0
    organisation = row.owner if row.owner != PLATFORM else None
    record(actor=SYSTEM, verb="data_key.remove", object=row, organisation_id=organisation)
    row.delete()
    return 1


def needs_key_file(root: RootKey) -> int:
    """Return how many values only the key file itself opens, if `root` is the one that lies there."""
    try:
        mine = name(read_root(Path(settings.HEARTH["HEARTH_KEY_FILE"])))
    except KeyFileError:
        return 0
    return waiting() if root.id == mine else 0


def columns_of_all() -> Iterator[tuple[type[models.Model], SealedTextField]]:
    """Yield every sealed column there is."""
    for model in apps.get_models():
        for field in model._meta.local_fields:
            if isinstance(field, SealedTextField):
                yield model, field


def _stale() -> list[bytes]:
    return [
        pk.bytes for pk in DataKey.objects.filter(reencrypt__isnull=False, shared=True).values_list("pk", flat=True)
    ]


def _rows(model: type[models.Model], field: SealedTextField, stale: list[bytes]) -> list[Any]:
    quote = connection.ops.quote_name
    table, column = quote(model._meta.db_table), quote(str(field.column))
    key = quote(str(model._meta.pk.column))
    # The names come from the models, never from a request.
    statement = f"select {key} from {table} where substr({column}, 1, 1) = %s or substr({column}, 2, 16) = any(%s)"  # noqa: S608
    with connection.cursor() as cursor:
        cursor.execute(statement, [b"\x01", stale])
        return [row[0] for row in cursor.fetchall()]


@transaction.atomic
def _one(model: type[models.Model], field: SealedTextField, pk: Any) -> bool:
    row = models.QuerySet(model).select_for_update(of=("self",)).filter(pk=pk).first()
    if row is None:  # gone meanwhile
        return False
    setattr(row, field.attname, getattr(row, field.attname))
    row.save(update_fields=[field.attname])
    return True
