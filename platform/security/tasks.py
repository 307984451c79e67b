"""What Celery runs: wrappers around the keyring's loops. Each looks for work in the database."""

from __future__ import annotations

from django.conf import settings

from observability.tasks import task
from security.keyring import erasure, keks, report, rewrap
from security.keyring.seams import seams

TURN = 20.0
"""Seconds of one turn of rewrapping: a message must end well before it would be delivered again."""


@task()
def rotate_due() -> None:
    """Rotate what is due, carry erasures on, and tell of what is overdue all the same."""
    try:
        keks.rotate_due()
    finally:
        erasure.advance()
        if late := report.sentences():
            for tell in seams.overdue:
                tell(late)


@task()
def rewrap_due() -> None:
    """Move data keys to active versions for a while."""
    rewrap.drive(per_second=float(settings.HEARTH["HEARTH_REWRAP_PER_SECOND"]), seconds=TURN)
