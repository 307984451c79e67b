"""Steps that have stopped the server don't give up because nobody answers where it runs: only they start it again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta

from django.utils import timezone

from provisioning.models import OperationStep
from provisioning.providers.base import ProviderError
from provisioning.steps import WAIT, Context, NotYet

AWAY = frozenset({"AgentUnreachable", "RegionUnreachable"})
"""Codes that say nothing about a step or its data: what is asked does not answer."""
LONGEST_PAUSE = timedelta(minutes=1)
TOLD = (
    "Nobody answers where this server runs, so it stays stopped until somebody does. Its data is safe, and this goes "
    "on by itself."
)


@contextlib.contextmanager
def patient(context: Context) -> Iterator[None]:
    """Try the block again for as long as nobody answers, less and less often: each pause is half of what has passed.

    That is no failed try, and is told: once in the log, and on the page for as long as it lasts. Raises `NotYet`.
    """
    try:
        yield
    except ProviderError as error:
        if error.code not in AWAY:
            raise
        if not context.operation.events.filter(step=context.step, message=TOLD).exists():
            context.log(TOLD)
        pause = _pause(context)
        context.note(f"Nobody answers where the server runs. Next try in {pause.total_seconds():.0f} s.")
        raise NotYet(pause) from None


def _pause(context: Context) -> timedelta:
    begun = OperationStep.objects.values_list("started", flat=True).get(operation=context.operation, name=context.step)
    lasted = timezone.now() - begun if begun else timedelta(0)
    return min(max(lasted / 2, WAIT), LONGEST_PAUSE)
