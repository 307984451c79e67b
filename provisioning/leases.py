"""Taking an operation, keeping it, and writing to it only while it is ours.

A lease is taken by compare-and-set and raises the operation's fence. Every later write names that fence in its WHERE
clause, so a worker that slept through its lease changes nothing. All times are the database's, since clocks differ.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import DateTimeField, ExpressionWrapper, F, Max, Q
from django.db.models.expressions import Combinable
from django.db.models.functions import Coalesce, Now

from provisioning.keeping import kept
from provisioning.models import Operation, OperationEvent

LEASE, RENEW_EVERY = timedelta(seconds=10), 3.0
STEP_LIMIT = 30 * 60.0
"""Seconds after which a step that never ends loses its lease, so that another worker tries it."""
FURTHEST = timedelta(minutes=2)
"""Further ahead than any lease or back-off goes."""
LINE_LIMIT = 2000


class LeaseLostError(Exception):
    """Somebody else has this operation now. Stop, and say nothing: it is theirs."""


def from_now(delay: timedelta) -> Combinable:
    """Return a moment after the database's present."""
    return ExpressionWrapper(Now() + delay, output_field=DateTimeField())


def holder() -> str:
    """Return a name for one claim: machine, process, and the claim itself.

    A name of its own for each, so that two threads of one worker can't take each other's lease for theirs.
    """
    return f"{socket.gethostname()[:40]}/{os.getpid()}/{uuid.uuid4().hex[:12]}"


def free(furthest: timedelta = FURTHEST) -> Q:
    """Match rows whose lease binds nobody: none, one that ended, or one that ends later than any lease does."""
    return Q(lease_until__isnull=True) | Q(lease_until__lt=Now()) | Q(lease_until__gt=from_now(furthest))


def due() -> Q:
    """Match operations that a worker may take now: a partial index holds the open ones by `run_after`.

    A moment further ahead than anybody sets one was written before the clock was put back; it binds nobody.
    """
    late = Q(run_after__lte=Now()) | Q(run_after__gt=from_now(FURTHEST))
    return Q(state__in=Operation.OPEN) & late & free()


def last_fence(server_id: uuid.UUID) -> int:
    """Return the highest fence of all operations on the server; 0 before its first."""
    return Operation.objects.filter(server=server_id).aggregate(last=Max("fence"))["last"] or 0


def claim(operation_id: uuid.UUID) -> Lease | None:
    """Take the operation if it is due and free, or return None."""
    owner = holder()
    taken = Operation.objects.filter(due(), pk=operation_id).update(
        state=Operation.State.RUNNING,
        lease_owner=owner,
        lease_until=from_now(LEASE),
        fence=F("fence") + 1,
        started=Coalesce("started", Now()),
    )
    if not taken:
        return None
    operation = Operation.objects.select_related("server").get(pk=operation_id)
    # Between the two statements another worker can only have taken it over; then it is not ours.
    return Lease(operation=operation, owner=owner, fence=operation.fence) if operation.lease_owner == owner else None


@dataclass
class Lease:
    """The right to work on one operation, as long as nobody took it over."""

    operation: Operation
    owner: str
    fence: int
    hidden: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Secrets by name; their values never reach the log."""

    @contextmanager
    def write(self, **changes: Any) -> Iterator[Operation]:
        """Open a transaction that commits only while the lease is ours; give the operation, locked and fresh."""
        with transaction.atomic():
            changes.setdefault("lease_until", from_now(LEASE))
            if not self._mine().update(**changes):
                raise LeaseLostError
            yield Operation.objects.get(pk=self.operation.pk)

    def log(self, message: str, *, step: str = "", level: str = OperationEvent.Level.INFO) -> None:
        """Append one line to the live log."""
        with self.write():
            self.event(message, step=step, level=level)

    def event(self, message: str, *, step: str = "", level: str = OperationEvent.Level.INFO) -> None:
        """Append one line inside a transaction of `write`."""
        text = self.redact(message).replace("\x00", "").strip()[:LINE_LIMIT]
        if text:
            OperationEvent.objects.create(operation=self.operation, step=step, level=level, message=text)

    def redact(self, text: str) -> str:
        """Replace every secret of the server that `text` quotes."""
        for name, value in self.hidden.items():
            # A signing key is a line of three words; the last alone is as secret as the whole.
            for part in (value, value.rpartition(" ")[2]):
                text = text.replace(part, f"[{name}]")
        return text

    def renew(self) -> bool:
        """Move the lease's end; False when it is somebody else's."""
        return bool(self._mine().update(lease_until=from_now(LEASE)))

    def kept(self) -> AbstractContextManager[None]:
        """Renew in the background while the block runs, but not for ever: a step that hangs must come free."""
        return kept(self.renew, name=f"operation {self.operation.pk}", every=RENEW_EVERY, limit=STEP_LIMIT)

    def _mine(self) -> Any:
        return Operation.objects.filter(
            pk=self.operation.pk, fence=self.fence, lease_owner=self.owner, state=Operation.State.RUNNING
        )
