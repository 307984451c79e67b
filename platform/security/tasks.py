"""What Celery runs: wrappers around the keyring's loops. Each looks for work in the database."""

from __future__ import annotations

import contextlib
import functools
import logging

from django.conf import settings

from observability.tasks import task
from security import reseal
from security.datakeys import allowances, grants
from security.keyring import erasure, keks, report, rewrap, upkeep
from security.keyring.seams import seams

logger = logging.getLogger(__name__)
TURN = 20.0
"""Seconds of one turn of rewrapping: a message must end well before it would be delivered again."""

SHOWN = 5
"""Keys that one line of the log names."""


@task()
def rotate_due() -> None:
    """Rotate what is due, carry erasures on, and tell of what is overdue all the same. Each has its turn."""
    with contextlib.ExitStack() as turns:
        for turn in (_tell, reseal.remove_unused, erasure.advance, keks.rotate_due):
            turns.callback(turn)  # the last one first


@task()
def rewrap_due() -> None:
    """Move data keys to active versions for a while."""
    rewrap.drive(per_second=float(settings.HEARTH["HEARTH_REWRAP_PER_SECOND"]), seconds=TURN)


def _tell() -> None:
    """One warning in the log, and whoever registered: keys that rotated a moment ago are no longer among them."""
    for what, late, hear in (
        ("Keys overdue", report.sentences(), seams.overdue),
        ("Places without key bundles", upkeep.late(), seams.places_late),
    ):
        if late:
            logger.warning("%s: %d. %s", what, len(late), " ".join(late[:SHOWN]))
            for tell in hear:
                tell(late)


@task()
def keep_bundles() -> None:
    """Write the whole keyring to every place once a day, and remove the bundles that are needed no more."""
    with contextlib.ExitStack() as turns:
        for turn in (allowances.forget_old, grants.forget_old, functools.partial(upkeep.keep, seconds=TURN)):
            turns.callback(turn)  # the last one first
