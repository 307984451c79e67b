"""What Celery runs: a wrapper around the sweep over due mails."""

from __future__ import annotations

from notifications import services
from observability.tasks import task


@task()
def deliver_due() -> None:
    """Send the mails whose time has come."""
    services.deliver_due()
