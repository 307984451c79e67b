"""How a proof ends: its result and the end of its grant in one write, then the throw-away instance goes.

Whatever happens to the worker in between, the row still names the instance, and `sweep` removes it.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from audit.services import SYSTEM, record
from backups.models import RestorePoint, ServerBackups
from backups.proofs.leases import Lease
from backups.proofs.models import READ_FIRST, UNDER_WAY, Proof
from provisioning.fleet import provider_for
from provisioning.leases import from_now
from provisioning.providers.base import ProviderError
from security.datakeys import grants

AGAIN = timedelta(hours=1)
"""When a proof that gave way is tried again."""
SWEPT_AT_ONCE = 20
LEFT = timedelta(minutes=1)
"""So long whoever ended a proof has its instance to themselves."""
_LOCK = 0x70726F66  # "prof"
ADDRESS = "address"
"""Where the instance answered: of use while it runs, evidence of nothing."""
log = logging.getLogger(__name__)


def end(lease: Lease, result: str, summary: str, **columns: Any) -> None:
    """Write down how a proof ended, and end its grant. Its instance is removed afterwards."""
    proof = lease.proof
    columns["evidence"] = {
        key: value for key, value in columns.get("evidence", proof.evidence).items() if key != ADDRESS
    }
    with lease.write(result=result, summary=summary, ended=timezone.now(), lease_until=None, step="", **columns):
        grants.revoke_held(SYSTEM, proof.pk, reason=f"the proof ended: {result}")
        after = {"result": result, "point": proof.point, "rto_seconds": proof.rto_seconds}
        organisation = proof.server.organisation_id
        record(actor=SYSTEM, verb="backups.proof", object=proof, organisation_id=organisation, after=after)
        if result == Proof.Result.PASSED:
            _mark(proof)
    remove_instance(proof)


def revoke(lease: Lease, reason: str) -> None:
    """End the grant: from here on nothing more is opened for this proof."""
    with lease.write(grant=None):
        grants.revoke_held(SYSTEM, lease.proof.pk, reason=reason)


def give_way(server_id: uuid.UUID, why: str) -> int:
    """Have the proofs of a server stop at once, because something more important needs its backups. Return how many.

    They are tried again by themselves. Cheap where there is none; safe to call again.
    """
    count = 0
    for proof in Proof.objects.filter(server=server_id, result="", fence__gt=0).exclude(step="begin"):
        with transaction.atomic():
            # The fence rises: the worker that is at it can write nothing more.
            again = {"step": "begin", "fence": proof.fence + 1, "lease_until": None, "lease_owner": ""}
            rows = Proof.objects.filter(pk=proof.pk, result="", fence=proof.fence)
            if not rows.update(**again, grant=None, failures=0, run_after=from_now(AGAIN)):
                continue
            grants.revoke_held(SYSTEM, proof.pk, reason=why)
            count += 1
    return count


def remove_instance(proof: Proof) -> bool:
    """Remove the throw-away instance of a proof that has ended. False: not yet, the sweep tries again."""
    if proof.instance is None or proof.removed is not None:
        return True
    try:
        if proof.region is not None:
            fence = proof.fence + 1  # above whatever its last worker still sends
            provider_for(proof.region).remove(str(proof.instance), fence=fence, progress=lambda _: None)
    except ProviderError as error:
        log.warning("The instance %s of a proof can't be removed yet: %s", proof.instance, error)
        return False
    Proof.objects.filter(pk=proof.pk, instance=proof.instance).update(removed=Now())
    return True


def sweep() -> int:
    """Remove the instances of proofs that ended while nobody could; return how many. Reads one small index.

    One worker at a time, since a removal may last, and none where whoever ended the proof may still be at it.
    """
    over = Q(ended__lt=Now() - LEFT) | Q(step="begin")  # ended, or gave way
    # In any order: those that can't be removed now keep no others waiting.
    rows = Proof.objects.filter(over, UNDER_WAY).select_related("region").order_by("?")
    with connection.cursor() as cursor:
        cursor.execute("select pg_try_advisory_lock(%s)", [_LOCK])
        if not cursor.fetchone()[0]:
            return 0
        try:
            return _swept(rows[:SWEPT_AT_ONCE])
        finally:
            cursor.execute("select pg_advisory_unlock(%s)", [_LOCK])


def _swept(rows: Iterable[Proof]) -> int:
    count, away = 0, set[Any]()
    for proof in rows:
        if proof.region_id in away:
            continue  # whoever is away answers none of them, and each question may last
        if remove_instance(proof):
            count += 1
        else:
            away.add(proof.region_id)
    return count


def mark_damaged(server_id: uuid.UUID, damage: dict[str, str]) -> None:
    """Say of restore points (identity to what is wrong) that they can't be brought back whole."""
    rows = RestorePoint.objects.filter(server=server_id).exclude(state=RestorePoint.State.GONE)
    for identity, text in damage.items():
        rows.filter(identity=identity).update(state=RestorePoint.State.DAMAGED, damage=text)


def read_soon(server_id: uuid.UUID) -> None:
    """Have every byte read: something was damaged, and which restore points that concerns has to be found."""
    ServerBackups.objects.filter(server=server_id).update(next_reading=READ_FIRST)


def _mark(proof: Proof) -> None:
    field = {Proof.Kind.READING: "read", Proof.Kind.RECOVERY: "proved"}.get(Proof.Kind(proof.kind))
    if field and proof.point:
        RestorePoint.objects.filter(server=proof.server_id, identity=proof.point).update(**{field: proof.begun})
