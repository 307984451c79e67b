"""What Celery runs: a wrapper around the sweep over due mails."""

from __future__ import annotations

from celery import shared_task

from notifications import services


@shared_task(ignore_result=True)
def deliver_due() -> None:
    """Send the mails whose time has come."""
    services.deliver_due()
