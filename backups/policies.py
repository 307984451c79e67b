"""How often a server is backed up, and for how long that is kept; and who may change it."""

from __future__ import annotations

import hashlib
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import transaction

from audit.services import record
from backups.models import Policy
from tenants.errors import Refused
from tenants.models import Server

FIELDS = ("every_hours", "hour", "window_days", "retention_days", "prove_days", "final_days")
DAY = 24


def policy_of(server: Server) -> Policy:
    """Return the server's own policy, else its plan's, else the one for all others (unsaved where there is none)."""
    own = Policy.objects.filter(server=server).first()
    if own is not None:
        return own
    plan = Policy.objects.filter(plan__subscriptions__organisation=server.organisation_id).first()
    return plan or Policy.objects.filter(plan=None, server=None).first() or Policy()


def next_base(policy: Policy, server: uuid.UUID, after: datetime) -> datetime:
    """Return when the next base backup is due, UTC: the first of the schedule's moments later than `after`.

    Moments are `every_hours` apart from the policy's hour on; without one each server has its own second, spread over
    the interval by its id, so that 100,000 servers don't begin together at midnight.
    """
    every = timedelta(hours=policy.every_hours)
    if policy.hour is None:
        share = int.from_bytes(hashlib.sha256(server.bytes).digest()[:4], "big") / 2**32
        start = datetime(2020, 1, 1, tzinfo=UTC) + every * share
    else:
        start = datetime(2020, 1, 1, policy.hour, tzinfo=UTC)
    return start + every * ((after - start) // every + 1)


@transaction.atomic
def change_policy(actor: Any, *, policy: Policy, **values: int | None) -> Policy:
    """Change a policy, or make it. What falls out of it is removed by the next expiry, a day later at the earliest."""
    if unknown := set(values) - set(FIELDS):
        raise TypeError(f"{sorted(unknown)} are no fields of a policy.")
    known = Policy.objects.select_for_update(of=("self",)).filter(pk=policy.pk).first()
    before = {name: getattr(known, name) for name in FIELDS} if known else {}
    for name, value in values.items():
        setattr(policy, name, value)
    refuse_nonsense(policy)
    policy.save()
    owner = policy.server.organisation_id if policy.server else None
    after = {name: getattr(policy, name) for name in FIELDS}
    record(actor=actor, verb="backups.policy", object=policy, organisation_id=owner, before=before, after=after)
    return policy


def refuse_nonsense(policy: Policy) -> None:
    """Raise `Refused` for what no policy may say."""
    limits = {
        "retention_days": (30, 3650, "Restore points are kept for at least 30 days: people notice a loss weeks later."),
        "final_days": (30, 3650, "The final backup of a deleted server is kept for at least 30 days."),
        "every_hours": (1, 168, "A base backup is taken at least once a week, at most once an hour."),
        "window_days": (1, 3650, "The window in which any second can be restored is at least a day."),
        "prove_days": (1, 31, "A recovery test takes place at least once a month, at most once a day."),
    }
    for name, (least, most, text) in limits.items():
        if not least <= getattr(policy, name) <= most:
            raise Refused(f"{text} Nothing was changed.", field=name)
    if policy.hour is not None and not 0 <= policy.hour < DAY:
        raise Refused("The hour is 0 to 23, UTC. Nothing was changed.", field="hour")
    if policy.window_days > policy.retention_days:
        raise Refused(
            "The window can't be longer than restore points are kept. Nothing was changed.", field="window_days"
        )
