"""Tells a worker that a mail waits. A message that does not get through costs seconds: beat sends the same one."""

from __future__ import annotations

import logging

from kombu.exceptions import OperationalError

from notifications import services, tasks

log = logging.getLogger(__name__)


def register() -> None:
    """Have workers woken after each commit that queued a mail."""
    services.register_wake(hint)


def hint() -> None:
    """Send the message; a broker that is away does not spoil the request."""
    try:
        tasks.deliver_due.apply_async(retry=False)
    except (OperationalError, OSError) as error:
        log.warning("No worker was told of a mail, because the broker is away; the next sweep finds it: %s", error)
