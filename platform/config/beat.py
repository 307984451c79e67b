"""Celery's beat without Django: the clock behind every loop, and its heartbeat in the database.

The schedule is short and fixed, so nothing of it is kept on disk. `python -m config.beat` runs it.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
from typing import Any

import psycopg
from celery import Celery
from celery.beat import Scheduler
from django.core.exceptions import ImproperlyConfigured

from config.connections.database import Database
from config.connections.redisurl import Redis
from config.env import read
from config.schedule import HEARTBEAT, HEARTBEAT_EVERY, TRANSPORT_OPTIONS, broker_url, schedule
from observability.metrics import CLOCK, CLOCK_FAULTS

logger = logging.getLogger(__name__)
WRITE = (
    "insert into provisioning_heartbeat (name, at) values (%s, now()) on conflict (name) do update set at = excluded.at"
)


class HeartbeatScheduler(Scheduler):
    """Celery's scheduler; between two messages it writes that it is alive. A database that is away does not stop it."""

    _next_beat = 0.0

    def tick(self, *args: Any, **kwargs: Any) -> float:
        if time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + HEARTBEAT_EVERY
            self._beat()
        return min(float(super().tick(*args, **kwargs)), HEARTBEAT_EVERY)

    def apply_async(self, entry: Any, *args: Any, **kwargs: Any) -> Any:
        event = "unsent"
        try:
            result = super().apply_async(entry, *args, **kwargs)
            event = "sent"
        finally:
            CLOCK.labels(task=entry.task, event=event).inc()
        return result

    def _beat(self) -> None:
        try:
            with psycopg.connect(**settings()[0].psycopg()) as connection:
                connection.execute(WRITE, (HEARTBEAT,))
        except psycopg.Error as error:
            CLOCK_FAULTS.inc()
            logger.warning("The heartbeat was not written: %s", error)


@functools.cache
def settings() -> tuple[Database, Redis]:
    """Return where PostgreSQL and Redis are, read as every other process reads it."""
    values = read()
    for name in ("DATABASE_URL", "REDIS_URL"):
        if not values[name]:
            raise ImproperlyConfigured(f"{name} is not set. Beat was not started.")
    return Database.of(values), Redis.of(values)


def main() -> None:
    """Run in the foreground until SIGTERM."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        _, broker = settings()
    except ImproperlyConfigured as error:
        sys.exit(str(error))
    app = Celery("hearth", broker=broker_url(broker.url), set_as_current=True)
    app.conf.update(
        broker.celery(),
        beat_schedule=schedule(),
        beat_max_loop_interval=1,
        broker_transport_options=TRANSPORT_OPTIONS,
        broker_connection_retry_on_startup=True,
        task_ignore_result=True,
        worker_hijack_root_logger=False,
    )
    app.Beat(scheduler="config.beat:HeartbeatScheduler", loglevel="WARNING", quiet=True).run()


if __name__ == "__main__":
    main()
