"""What Celery runs. Each is a wrapper: the work, and whether it may be done, is in PostgreSQL."""

from __future__ import annotations

from backups import orders
from observability.tasks import task


@task()
def order_due() -> None:
    """Ask engines for the base backups that are due."""
    orders.place_due()
