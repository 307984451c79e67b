"""What Celery runs. Each is a wrapper: the work, and whether it may be done, is in PostgreSQL."""

from __future__ import annotations

import time
import uuid

from django.utils import timezone

from backups import alerts, checking, expiring, orders, shelves
from backups.copying import schedule as copies
from backups.exporting import upkeep as exported
from backups.proofs import drills, ends, schedule, turns
from backups.restoring import upkeep
from observability.tasks import task

COPY_TURN = 30.0
"""Seconds after which a worker lets other work come before the next copy."""
SOON = 5.0
"""Seconds within which a proof is looked at again by its own message; after longer the clock finds it."""


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
def copy_due() -> None:
    """Have backups copied to second stores: one message for each that may run beside those that do."""
    copies.make_missing()
    copies.pass_quiet()
    for _ in range(copies.wanted()):
        copy_some.delay()


@task()
def copy_some() -> None:
    """Copy for a while, whoever has waited longest first."""
    if copies.copy_some(time.monotonic() + COPY_TURN, time.monotonic):
        copy_some.delay()


@task()
def prove_due() -> None:
    """Have proofs carried out: those that are due are made, and each that is open gets a turn."""
    schedule.plan_missing()
    drills.move_on()
    schedule.place_due()
    ends.sweep()
    for pk in schedule.due_now():
        prove.delay(str(pk))


@task()
def prove(pk: str) -> None:
    """Take one turn of a recovery test or a full read."""
    wait = turns.run(uuid.UUID(pk))
    if wait is not None and wait <= SOON:
        prove.apply_async((pk,), countdown=wait)


@task()
def observe() -> None:
    """Find what is wrong with backups, whatever engines say of themselves, and tell who has to know."""
    alerts.observe()
    checking.forget_old(timezone.now())


@task()
def tidy_restores() -> None:
    """Remove copies and exports whose time is over, end grants that are left, and let older servers have backups."""
    upkeep.tidy()
    exported.sweep()
    upkeep.begin_missing_engines()
