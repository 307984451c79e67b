"""Each worker looks for due work by itself, so that an emptied, restarted or dead broker costs seconds and no more.

Celery's messages make the common case fast (milliseconds). This thread makes every case certain: it sweeps, and carries
out what it finds in a few threads of its own, without the broker.
"""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from celery.signals import worker_ready, worker_shutdown, worker_shutting_down
from django.db import connection
from django.db.models.functions import Now

from provisioning import engine
from provisioning.models import Heartbeat
from provisioning.sweep import sweep

LOOK_EVERY, THREADS, HEARTBEAT_EVERY = 2.0, 2, 10.0
log = structlog.get_logger()


class Watch(threading.Thread):
    """Looks every two seconds. One look that fails (the database is down) is only logged: the next may succeed."""

    def __init__(self) -> None:
        super().__init__(name="watch", daemon=True)
        self._stop_looking = threading.Event()
        self._free = threading.BoundedSemaphore(THREADS)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="watch")
        self._beat = 0.0

    def run(self) -> None:
        while not self._stop_looking.is_set():
            try:
                self.look()
            except Exception:
                log.warning("sweep_failed", exc_info=True)
                connection.close()
            self._stop_looking.wait(LOOK_EVERY)
        connection.close()

    def look(self) -> None:
        """Sweep once, and hand what is due to free threads."""
        for operation_id in sweep():
            if not self._free.acquire(blocking=False):
                break
            self._threads.submit(self._carry_out, operation_id)
        if time.monotonic() - self._beat >= HEARTBEAT_EVERY:
            beat("worker")
            self._beat = time.monotonic()

    def stop(self) -> None:
        """Take nothing new, and wait until what runs has come between two steps."""
        self._stop_looking.set()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _carry_out(self, operation_id: uuid.UUID) -> None:
        try:
            engine.run(operation_id)
        except Exception:
            log.exception("operation_not_run", operation=str(operation_id))
        finally:
            connection.close()
            self._free.release()


def beat(name: str) -> None:
    """Write down that the part `name` is alive, in the database's time."""
    Heartbeat.objects.update_or_create(name=name, defaults={"at": Now()})


_watch: list[Watch] = []


@worker_ready.connect
def start_watch(**_: Any) -> None:
    """Begin to look when the worker is ready."""
    engine.stopping.clear()
    _watch.append(Watch())
    _watch[-1].start()


@worker_shutting_down.connect
def hand_back(**_: Any) -> None:
    """Let running operations end after their present step."""
    engine.stopping.set()


@worker_shutdown.connect
def stop_watch(**_: Any) -> None:
    """Wait for the watch's own threads; Celery waits for its own."""
    while _watch:
        _watch.pop().stop()
