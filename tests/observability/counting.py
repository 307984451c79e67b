"""A worker for the tests whose sweep only leaves a mark: `celery -A tests.observability.counting worker`."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery

from config import settings

app = Celery("hearth")
app.config_from_object(settings, namespace="CELERY")


@app.task(name="provisioning.tasks.sweep")
def sweep() -> None:
    with Path(os.environ["TESTS_COUNT"]).open("a", encoding="ascii") as file:
        file.write("x")


@app.task(name="provisioning.tasks.observe")
def observe() -> None:
    """Nothing is to be observed here."""


@app.task(name="notifications.tasks.deliver_due")
def deliver_due() -> None:
    """No mails here."""
