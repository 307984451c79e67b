"""The mails' numbers for Prometheus."""

from __future__ import annotations

from django.db.models import Count

from notifications.models import Mail
from observability.gauges import Rows, gauge


@gauge("hearth_mails_waiting", "Mails that the mail server has not taken yet.")
def mails_waiting() -> Rows:
    """Count queued mails: a partial index holds them."""
    found = Mail.objects.filter(state=Mail.State.QUEUED).aggregate(count=Count("pk"))
    return [([], found["count"])]
