"""The fleet's numbers for Prometheus. Every state is there also when nothing is in it, so that no line ends."""

from __future__ import annotations

from datetime import timedelta

from django.db.models import Count, DateTimeField, DurationField, ExpressionWrapper, F, Min
from django.db.models.functions import Now

from observability.gauges import Rows, gauge
from provisioning.models import Heartbeat, Operation, ServerStatus

DAY = timedelta(days=1)


@gauge("hearth_servers", "Servers by the phase they were last seen in.", ["phase"])
def servers() -> Rows:
    """Count all but the deleted."""
    counts = dict(ServerStatus.objects.values_list("phase").annotate(Count("pk")))
    return [([phase], counts.get(phase, 0)) for phase in ServerStatus.Phase.values if phase != "deleted"]


@gauge("hearth_operations", "Operations that are open, and those that ended in the last day.", ["state"])
def operations() -> Rows:
    """Count by state. Ended ones are kept for ever, so only the newest are looked at."""
    day_ago = ExpressionWrapper(Now() - DAY, output_field=DateTimeField())
    counts = dict(
        [
            *Operation.objects.filter(state__in=Operation.OPEN).values_list("state").annotate(Count("pk")),
            *Operation.objects.filter(finished__gt=day_ago).values_list("state").annotate(Count("pk")),
        ]
    )
    return [([state], counts.get(state, 0)) for state in Operation.State.values]


@gauge("hearth_operation_oldest_waiting_seconds", "Age of the oldest operation that waits to be begun; 0 if none does.")
def oldest_waiting() -> Rows:
    """Ask the database's clock, which wrote the times."""
    age = ExpressionWrapper(Now() - Min("created"), output_field=DurationField())
    found = Operation.objects.filter(state=Operation.State.QUEUED).aggregate(age=age)["age"]
    return [([], max(0.0, found.total_seconds()) if found else 0.0)]


@gauge("hearth_heartbeat_age_seconds", "Seconds since a part said last that it is alive.", ["part"])
def heartbeats() -> Rows:
    """Give beat's age and the worker's; a part that never lived has none."""
    age = ExpressionWrapper(Now() - F("at"), output_field=DurationField())
    return [([name], max(0.0, age.total_seconds())) for name, age in Heartbeat.objects.values_list("name", age)]
