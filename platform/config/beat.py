"""Celery's beat without Django: the clock behind every loop, and its heartbeat in the database.

The schedule is short and fixed, so nothing of it is kept on disk. `python -m config.beat` runs it.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import environ
import psycopg
from celery import Celery
from celery.beat import Scheduler

from config.schedule import HEARTBEAT, HEARTBEAT_EVERY, TRANSPORT_OPTIONS, broker_url, schedule

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

    def _beat(self) -> None:
        try:
            with psycopg.connect(**database_options(os.environ["DATABASE_URL"])) as connection:
                connection.execute(WRITE, (HEARTBEAT,))
        except psycopg.Error as error:
            logger.warning("The heartbeat was not written: %s", error)


def database_options(url: str) -> dict[str, Any]:
    """Return psycopg's options for an address as Django's settings read it."""
    config = environ.Env.db_url_config(url)
    names = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
    given = {option: config[name] for option, name in names.items() if config.get(name)}
    return {"connect_timeout": 5, **given, **config.get("OPTIONS", {})}


def main() -> None:
    """Run in the foreground until SIGTERM."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    app = Celery("hearth", broker=broker_url(os.environ["REDIS_URL"]), set_as_current=True)
    app.conf.update(
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
