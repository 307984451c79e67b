"""Rewrap: move data keys from versions that only open to the active one. Reads and writes the keyring alone.

The work is whatever is still wrapped by an old version, so there is nothing to lose: a batch is one transaction, and a
worker that dies leaves a lease that ends by itself. Owners take turns, one batch each, so a big one delays nobody.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from django.db import IntegrityError, connection, transaction
from django.db.models import F, Q
from django.utils import timezone

from audit.services import SYSTEM, record
from security.errors import KeysChanged, LeaseLost, SecurityError, WrongKey
from security.keyring import deks, keks, roots
from security.models import DataKey, KeyEncryptionKey, Rewrap, owner_name

logger = logging.getLogger(__name__)
BATCH = 1000
LEASE = timedelta(seconds=30)
PUT_ASIDE = timedelta(hours=1)
"""How long a run rests in which some data keys can't be opened: a person must look at it first."""
FIRST = uuid.UUID(int=0)
UPDATE = """
UPDATE security_datakey AS row SET kek_id = %s, wrapped = given.wrapped
FROM unnest(%s::uuid[], %s::bytea[]) AS given (id, wrapped) WHERE row.id = given.id AND row.kek_id = %s
"""
State = KeyEncryptionKey.State


class Run:
    """One owner's rewrap in the hands of one worker."""

    def __init__(self, row: Rewrap, lease: uuid.UUID) -> None:
        self.row, self.lease = row, lease
        self.after = FIRST
        self.unreadable: list[str] = []
        old = KeyEncryptionKey.objects.filter(owner=row.owner, state=State.DECRYPT_ONLY)
        self.waiting = list(old.order_by("version"))

    def step(self, size: int) -> int:
        """Move the next data keys in one transaction; return how many were looked at, 0 at the end."""
        while self.waiting:
            try:
                looked = self._batch(self.waiting[0], size)
            except IntegrityError:
                # The version that was the active one a moment ago takes no keys any more.
                raise KeysChanged(
                    f"The keys of {owner_name(self.row.owner)} were changed during the rewrap. The last batch was "
                    "not written; nothing is lost, and the next turn goes on."
                ) from None
            if looked:
                return looked
            self.waiting.pop(0)
            self.after = FIRST
        return 0

    @transaction.atomic
    def _batch(self, old: KeyEncryptionKey, size: int) -> int:
        self._hold()
        # Rows that somebody else holds are left to them; the proof at the end finds what stayed behind.
        waiting = DataKey.objects.filter(kek=old, id__gt=self.after).select_for_update(skip_locked=True, of=("self",))
        rows = list(waiting.order_by("id")[:size])
        if not rows:
            return 0
        self.after = rows[-1].pk
        new = keks.ensure_kek(old.owner)
        moved = _move(rows, old, new, self.unreadable)
        Rewrap.objects.filter(pk=self.row.pk).update(done=F("done") + moved)
        return len(rows)

    def _hold(self, until: timedelta = LEASE) -> None:
        mine = Rewrap.objects.filter(pk=self.row.pk, lease=self.lease, finished__isnull=True)
        if not mine.update(lease_until=timezone.now() + until):
            raise LeaseLost(f"Another worker took over the {self.row}. What was moved stays moved.")

    @transaction.atomic
    def finish(self, actor: Any) -> bool:
        """Retire what wraps nothing any more and end the run; False where something stayed behind."""
        self._hold()
        clean = True
        old = KeyEncryptionKey.objects.select_for_update().filter(owner=self.row.owner, state=State.DECRYPT_ONLY)
        for kek in old:
            if keks.needed_by(kek):
                clean = False
                continue
            KeyEncryptionKey.objects.filter(pk=kek.pk).update(state=State.RETIRED)
            organisation = roots.organisation_of(kek.owner)
            record(actor=actor, verb="kek.retire", object=kek, organisation_id=organisation)
        mine = Rewrap.objects.filter(pk=self.row.pk)
        if clean:
            mine.update(finished=timezone.now(), lease=None, lease_until=None, error="")
        elif self.unreadable:
            mine.update(error=_fault(self.unreadable))
            self._hold(PUT_ASIDE)
        else:
            mine.update(lease=None, lease_until=None)
        return clean


def open_runs() -> list[Rewrap]:
    """Return the open run of every owner that has an old version, made where there is none."""
    owners = set(KeyEncryptionKey.objects.filter(state=State.DECRYPT_ONLY).values_list("owner", flat=True))
    unfinished = Rewrap.objects.filter(finished__isnull=True)
    made = []
    for owner in owners - set(unfinished.values_list("owner", flat=True)):
        total = DataKey.objects.filter(kek__owner=owner, kek__state=State.DECRYPT_ONLY).count()
        made.append(Rewrap(owner=owner, total=total))
    # An owner has one open run by a constraint: where another worker was first, its run is the one.
    Rewrap.objects.bulk_create(made, ignore_conflicts=True)
    return list(unfinished.all())


def claim(row: Rewrap) -> Run | None:
    """Take a run by compare-and-set; None where another worker has it."""
    lease, now = uuid.uuid4(), timezone.now()
    free = Rewrap.objects.filter(pk=row.pk, finished__isnull=True).filter(
        Q(lease_until__isnull=True) | Q(lease_until__lte=now)
    )
    return Run(row, lease) if free.update(lease=lease, lease_until=now + LEASE) else None


def drive(
    actor: Any = SYSTEM,
    *,
    per_second: float,
    seconds: float | None = None,
    size: int = BATCH,
    progress: Callable[[Rewrap], None] | None = None,
) -> int:
    """Work on all open runs in turn until they are done or `seconds` are over; return how many data keys were moved."""
    began, looked = time.monotonic(), 0
    runs = [run for row in open_runs() if (run := claim(row))]
    # Slow rates get small batches, so that a pause is never much longer than a second.
    size = max(1, min(size, int(per_second)))
    while runs and (seconds is None or time.monotonic() - began < seconds):
        for run in list(runs):
            count = _step(actor, run, size, runs)
            looked += count
            if progress is not None:
                run.row.refresh_from_db()
                progress(run.row)
            time.sleep(max(0.0, began + looked / per_second - time.monotonic()) if count else 0.0)
    for run in runs:
        Rewrap.objects.filter(pk=run.row.pk, lease=run.lease).update(lease=None, lease_until=None)
    return looked


def _step(actor: Any, run: Run, size: int, runs: list[Run]) -> int:
    """One batch of one run. A run that ends, or breaks, leaves the list; a broken one does not stop the others."""
    try:
        if count := run.step(size):
            return count
        run.finish(actor)
    except LeaseLost as error:
        logger.info("%s", error)
    except SecurityError as error:
        # The root is away (an HSM without network), or a version was changed: later, and with the reason to be seen.
        Rewrap.objects.filter(pk=run.row.pk, lease=run.lease).update(error=str(error), lease=None, lease_until=None)
        logger.warning("The %s stopped: %s", run.row, error)
    runs.remove(run)
    return 0


def _move(rows: Sequence[DataKey], old: KeyEncryptionKey, new: KeyEncryptionKey, unreadable: list[str]) -> int:
    moved: dict[uuid.UUID, bytes] = {}
    with keks.open_kek(old) as before, keks.open_kek(new) as after:
        for row in rows:
            try:
                with deks.unwrap_with(before, row) as key:
                    moved[row.pk] = deks.wrap_with(after, new.pk, row, key)
            except WrongKey:  # stays as it is, and is named at the end
                unreadable.append(str(row.pk))
    with connection.cursor() as cursor:
        cursor.execute(UPDATE, [new.pk, list(moved), list(moved.values()), old.pk])
        return int(cursor.rowcount)


def _fault(unreadable: Sequence[str]) -> str:
    shown = ", ".join(unreadable[:5])
    return (
        f"{len(unreadable)} data keys were changed in the database and can't be opened: {shown}. The others were "
        "moved, the old version stays. Restore these rows from a key bundle, then run: manage.py keys rewrap"
    )
