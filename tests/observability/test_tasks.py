"""Messages are sent after commit and carry the request's id; an emptied or dead Redis costs seconds, never a verb."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
import structlog
from celery import Celery
from django.conf import settings
from django.db import transaction
from prometheus_client import REGISTRY

from config.schedule import broker_url
from observability.context import RequestContext, current
from observability.tasks import task

ROOT = Path(__file__).resolve().parents[2]
seen: list[tuple[str, str]] = []


@task(name="tests.note")
def note(fail: bool = False) -> None:
    seen.append((current.get().request_id, structlog.contextvars.get_contextvars()["task"]))
    if fail:
        raise ValueError


def count(event: str) -> float:
    return REGISTRY.get_sample_value("hearth_tasks_total", {"task": "tests.note", "event": event}) or 0.0


def waiting() -> int:
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        return int(client.llen("celery"))


@pytest.mark.django_db(transaction=True)
def test_a_message_is_sent_after_the_commit_and_not_after_a_rollback() -> None:
    with transaction.atomic():
        assert note.delay() is None
        assert waiting() == 0
    assert waiting() == 1
    with transaction.atomic():
        note.delay()
        transaction.set_rollback(True)
    assert waiting() == 1
    note.delay()
    assert waiting() == 2


@pytest.mark.django_db
def test_a_run_is_counted_and_knows_its_ids() -> None:
    seen.clear()
    before = {event: count(event) for event in ("started", "done", "failed")}
    note.apply(headers={"hearth_request_id": "r7"})
    note.apply(kwargs={"fail": True})
    assert seen == [("r7", "tests.note"), ("", "tests.note")]
    assert {event: count(event) - before[event] for event in before} == {"started": 2, "done": 1, "failed": 1}
    assert current.get() == RequestContext()


@pytest.mark.django_db(transaction=True)
def test_a_broker_that_is_away_fails_no_verb() -> None:
    before = count("unsent")
    away = Celery("away", broker="redis+socket:///nonexistent/redis.sock", set_as_current=False)
    away.conf.task_publish_retry_policy = settings.CELERY_TASK_PUBLISH_RETRY_POLICY
    with transaction.atomic():
        away.tasks["tests.note"].delay()  # would try for ever, if nobody had said how often
    assert count("unsent") == before + 1


@contextmanager
def process(*words: str, log: Path) -> Iterator[None]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment |= {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", "DATABASE_URL": database_url()}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", *words], env=environment, stdout=output, stderr=output
        ) as child,
    ):
        try:
            yield
        finally:
            child.kill()


def database_url() -> str:
    return os.environ["DATABASE_URL"].replace("/hearth?", f"/{settings.DATABASES['default']['NAME']}?")


def until(condition: Callable[[], object], log: Path, *, seconds: float = 90) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, log.read_text()
        time.sleep(0.05)


@pytest.mark.django_db(transaction=True)
def test_work_goes_on_within_seconds_after_redis_was_emptied(tmp_path: Path) -> None:
    """With a real worker and beat: messages and bindings are gone, and both must find each other again."""
    log = tmp_path / "log"
    taken = count_taken(tmp_path)
    words = ("celery", "-A", "tests.observability.counting", "worker", "--pool", "threads", "-c", "2")
    os.environ["TESTS_COUNT"] = str(tmp_path / "count")
    with (
        process(*words, "--without-gossip", "--without-mingle", log=log),
        process("config.beat", log=tmp_path / "beat"),
    ):
        until(lambda: taken() >= 2, log)
        with redis.Redis.from_url(settings.REDIS_URL) as client:
            client.flushdb()  # all that this worker's broker has; other tests have other numbers
        at = taken()
        until(lambda: taken() >= at + 2, log)


def count_taken(tmp_path: Path) -> Callable[[], int]:
    file = tmp_path / "count"
    return lambda: file.stat().st_size if file.exists() else 0


def test_the_brokers_address_is_written_as_celery_wants_it() -> None:
    assert broker_url("redis://:x@host:6379/2") == "redis://:x@host:6379/2"
    assert broker_url("unix:///run/redis.sock?db=3") == "redis+socket:///run/redis.sock?virtual_host=3"
    assert broker_url("unix://:pw@/run/redis.sock") == "redis+socket://:pw@/run/redis.sock?virtual_host=0"
