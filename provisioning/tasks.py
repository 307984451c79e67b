"""What Celery runs. Each is a wrapper: the work, and whether it may be done, is in PostgreSQL."""

from __future__ import annotations

import uuid

from observability.tasks import task
from provisioning import engine, observer, samples, wake
from provisioning.sweep import sweep as find_due
from provisioning.worker import start_watch, stop_watch

__all__ = ["observe", "prune_samples", "run_operation", "start_watch", "stop_watch", "sweep"]


@task()
def run_operation(operation_id: str) -> None:
    """Carry out an operation; without effect when somebody else has it."""
    engine.run(uuid.UUID(operation_id))


@task()
def sweep() -> None:
    """Make missing operations and wake workers for what is due."""
    for operation_id in find_due():
        wake.hint(operation_id)


@task()
def observe() -> None:
    """Look at every server and write down how it is."""
    observer.observe()


@task()
def prune_samples() -> None:
    """Remove what is older than pages show."""
    samples.prune()
