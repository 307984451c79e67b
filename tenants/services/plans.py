"""How the servers of a plan are kept: what staff decide for all of them."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.db.models import F, Q, QuerySet

from audit.services import record
from tenants.errors import Refused
from tenants.models import WITH_PLAN, Plan, Server, Subscription


@transaction.atomic
def change_plan(*, actor: Any, plan: Plan, **columns: Any) -> Plan:
    """Change how servers of the plan are kept (`WITH_PLAN`). Those that are there take it over, one after the other."""
    row = Plan.objects.select_for_update().get(pk=plan.pk)
    before = _kept(row)
    after = before | {key: columns[key] for key in WITH_PLAN if key in columns}
    _check(after)
    if after == before:
        return row
    for key, value in after.items():
        setattr(row, key, value)
    row.save(update_fields=list(WITH_PLAN))
    # Servers that are being made hold their subscription, so none is missed.
    subscriptions = Subscription.objects.select_for_update().filter(plan=row).order_by("pk")
    changed = follow(Server.objects.filter(organisation__in=[each.organisation_id for each in subscriptions]), row)
    record(actor=actor, verb="plan.change", object=row, before=before, after={**after, "servers": changed})
    return row


def follow(servers: QuerySet[Server], plan: Plan) -> int:
    """Let servers be kept as the plan says; return how many change. Call it inside a transaction.

    Nobody is woken: a sweep finds them within seconds, and so many at once need not be quicker.
    """
    kept = _kept(plan)
    other = Q()
    for key, value in kept.items():
        same = Q(**{f"{key}__isnull": True}) if value is None else Q(**{key: value})
        # SQL's NULL is not unlike anything.
        other |= ~same | (Q(**{f"{key}__isnull": True}) if value is not None else Q(pk__in=[]))
    return servers.filter(other, deleted__isnull=True).update(**kept, generation=F("generation") + 1)


def kept_by(plan: Plan) -> dict[str, Any]:
    """Return what a new server has from the plan as it is at this moment, not as it was read before a lock."""
    return _kept(Plan.objects.get(pk=plan.pk))


def _kept(plan: Plan) -> dict[str, Any]:
    return {key: getattr(plan, key) for key in WITH_PLAN}


def _check(kept: dict[str, Any]) -> None:
    if not 1 <= kept["database_instances"] <= 3:
        raise Refused("A database has one to three instances. Nothing was changed.", field="database_instances")
    for key in ("database_synchronous", "database_replicas"):
        if kept[key] and kept["database_instances"] < 2:
            raise Refused("This needs at least 2 instances. Nothing was changed.", field=key)
    if kept["workers"] is not None and not 0 <= kept["workers"] <= 50:
        raise Refused("A server has at most 50 workers. Nothing was changed.", field="workers")
