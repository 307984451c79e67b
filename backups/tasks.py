"""What Celery runs. Each is a wrapper: the work, and whether it may be done, is in PostgreSQL."""

from __future__ import annotations

from django.utils import timezone

from backups import alerts, checking, expiring, orders, shelves
from observability.tasks import task


@task()
def order_due() -> None:
    """Ask engines for the base backups that are due."""
    orders.place_due()


@task()
def look_due() -> None:
    """Have stores looked through: the servers whose turn it is, one message each."""
    shelves.make_missing()
    for pk in shelves.claim_due():
        look_through.delay(pk)


@task()
def look_through(pk: int) -> None:
    """Look through what a store holds of a server, and remove what has expired."""
    expiring.run(pk)


@task()
def observe() -> None:
    """Find what is wrong with backups, whatever engines say of themselves, and tell who has to know."""
    alerts.observe()
    checking.forget_old(timezone.now())
