"""What Celery runs: a wrapper around the clean-up."""

from __future__ import annotations

from accounts import services
from observability.tasks import task


@task()
def forget_old() -> None:
    """Remove sessions, links and sign-ups that have expired."""
    services.forget_old()
