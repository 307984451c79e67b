"""What Celery runs: wrappers around the sweeps over mails."""

from __future__ import annotations

from notifications import services
from observability.tasks import task


@task()
def deliver_due() -> None:
    """Send the mails whose time has come."""
    services.deliver_due()


@task()
def prune() -> None:
    """Remove old mails."""
    services.prune()
