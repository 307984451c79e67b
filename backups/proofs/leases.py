"""Taking a proof, keeping it, and writing to it only while it is ours.

As with operations (`provisioning.leases`), but the fence rises only when somebody takes over from a worker that was
lost: a proof is handed back and taken again every few seconds, and what it began under its fence (a grant, a
recovery) goes on meanwhile. All times are the database's.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import BigIntegerField, Case, F, Q, Value, When
from django.db.models.functions import Now

from backups.proofs.models import Proof
from provisioning.keeping import kept
from provisioning.leases import free, from_now, holder

LEASE, RENEW_EVERY = timedelta(seconds=60), 10.0
TURN_LIMIT = 12 * 3600.0
"""Seconds after which a turn that never ends loses its lease. A full read is one turn."""


class LeaseLostError(Exception):
    """Somebody else has this proof now. Stop, and say nothing: it is theirs."""


def due() -> Q:
    """Match the proofs that a worker may take now."""
    return Q(result="", run_after__lte=Now()) & free()


def claim(pk: uuid.UUID) -> Lease | None:
    """Take a proof if it is due and free, or return None."""
    owner = holder()
    taken_over = When(lease_until__isnull=False, then=F("fence") + 1)
    taken = Proof.objects.filter(due(), pk=pk).update(
        fence=Case(taken_over, When(fence=0, then=Value(1)), default=F("fence"), output_field=BigIntegerField()),
        lease_owner=owner,
        lease_until=from_now(LEASE),
    )
    if not taken:
        return None
    proof = Proof.objects.select_related("server", "store", "region", "drill").get(pk=pk)
    return Lease(proof=proof, owner=owner) if proof.lease_owner == owner else None


@dataclass
class Lease:
    """The right to work on one proof, as long as nobody took it over or ended it. `proof` is as it was last written."""

    proof: Proof
    owner: str

    @property
    def fence(self) -> int:
        return self.proof.fence

    @contextmanager
    def write(self, **changes: Any) -> Iterator[None]:
        """Open a transaction that commits only while the lease is ours, and write these columns in it."""
        with transaction.atomic():
            if not self._mine().update(**{"lease_until": from_now(LEASE), **changes}):
                raise LeaseLostError
            yield
        for name, value in changes.items():
            setattr(self.proof, name, value)

    def set(self, **changes: Any) -> None:
        """Write these columns."""
        with self.write(**changes):
            pass

    def hand_back(self, after: timedelta) -> None:
        """Let it be taken again, by whoever comes first."""
        self._mine().update(lease_until=None, lease_owner="", run_after=from_now(after))

    @contextmanager
    def kept(self) -> Iterator[threading.Event]:
        """Renew in the background while the block runs. Gives an event that is set when the lease is lost."""
        lost, name = threading.Event(), f"proof {self.proof.pk}"
        with kept(self._renewed, name=name, every=RENEW_EVERY, limit=TURN_LIMIT, lost=lost.set):
            yield lost

    def _renewed(self) -> bool:
        return bool(self._mine().update(lease_until=from_now(LEASE)))

    def _mine(self) -> Any:
        return Proof.objects.filter(pk=self.proof.pk, fence=self.proof.fence, lease_owner=self.owner, result="")
