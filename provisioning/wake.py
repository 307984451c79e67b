"""Hints to the workers. Losing one costs at most the interval of a worker's own look (`provisioning.worker`)."""

from __future__ import annotations

import uuid

import structlog
from celery import current_app
from kombu.exceptions import OperationalError

log = structlog.get_logger()


def hint(operation_id: uuid.UUID) -> None:
    """Wake a worker for this operation. A broker that is down is no reason to fail what was already committed."""
    try:
        # By name: the tasks import the engine, which imports the verbs that call this.
        current_app.send_task("provisioning.tasks.run_operation", args=[str(operation_id)], retry=False)
    except (OperationalError, OSError) as error:
        log.warning("worker_not_woken", operation=str(operation_id), error=str(error))
